"""Measures the fastest tiles of a layer on the present GPU; the resulting rows go into `tiles.json`.

Called only to tune, never while serving. Each candidate is timed in a CUDA graph that cycles through copies
of the weights, so that neither launch overhead nor a warm cache affects the result.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import torch
import triton
from torch import Tensor

from fewshard_kernels.moe_ffn.options import ExpertWeights, MoeOptions, Routing
from fewshard_kernels.moe_ffn.tiles import (
    GemmTile,
    LayerShape,
    Tiles,
    ceil_div,
    power_of_two,
    shared_bytes,
    shared_limit,
    to_row,
)
from fewshard_kernels.moe_ffn.triton.experts import first_product, second_product
from fewshard_kernels.moe_ffn.triton.route import Routed, route_rows

# Total size of the copies: several times the largest L2 cache.
_COLD_BYTES = 256 * 2**20
_RUNS = 20
# Result of timing one product: milliseconds, and the tile.
Timing = tuple[float, GemmTile]


def tune(shape: LayerShape, buckets: Sequence[int], device: torch.device) -> list[dict[str, Any]]:
    """The fastest tiles of a layer for each number of rows per expert, as rows of `tiles.json`.

    Each row also holds `milliseconds` of both products together; remove it before `tiles.from_row`. Rows are
    spread evenly over the experts. Takes minutes. Raises ValueError unless the GPU has `shape.capability`.
    """
    if torch.cuda.get_device_capability(device) != shape.capability:
        raise ValueError(
            f"{device} does not have compute capability {shape.capability}; tune on one that has"
        )
    return [_tune_bucket(shape, bucket, device) for bucket in buckets]


def candidates(shape: LayerShape, block_m: int, second: bool) -> Iterator[GemmTile]:
    """Candidate tiles for one of the two products; each fits in shared memory."""
    products = 2 if shape.gated and not second else 1
    width, depth = (shape.hidden, shape.width) if second else (shape.width, shape.hidden)
    for block_n, block_k, warps in product((32, 64, 128, 256), (32, 64, 128), (4, 8)):
        too_many_values = block_m * block_n * products > 256 * 32 * warps
        if too_many_values or block_n > power_of_two(width) or block_k > power_of_two(depth):
            continue
        for group_m, stages in product((1, 8), (2, 3, 4, 5)):
            tile = GemmTile(block_n, block_k, group_m, warps, stages)
            if shared_bytes(shape, block_m, tile, products) <= shared_limit(shape.capability):
                yield tile


def _tune_bucket(shape: LayerShape, bucket: int, device: torch.device) -> dict[str, Any]:
    x, copies, options = _layer(shape, bucket, device)
    routing = _even_routing(x.shape[0], shape, device)
    measured: list[tuple[float, Tiles]] = []
    for block_m in (16, 32, 64, 128):
        routed = route_rows(x, routing, shape.num_experts, options, block_m)
        first = _fastest(shape, False, x, copies, routed, options, block_m)
        hidden = first_product(x, copies[0], routed, options, block_m, first[1])
        second = _fastest(shape, True, hidden, copies, routed, options, block_m)
        measured.append((first[0] + second[0], Tiles(block_m, first[1], second[1])))
    milliseconds, tiles = min(measured, key=lambda timing: timing[0])
    return {**to_row(shape, bucket, tiles), "milliseconds": round(milliseconds, 5)}


def _fastest(
    shape: LayerShape,
    second: bool,
    a: Tensor,
    copies: list[ExpertWeights],
    routed: Routed,
    options: MoeOptions,
    block_m: int,
) -> Timing:
    run = second_product if second else first_product
    timings: list[Timing] = []
    for tile in candidates(shape, block_m, second):

        def call(weights: ExpertWeights, tile: GemmTile = tile) -> object:
            return run(a, weights, routed, options, block_m, tile)

        try:
            timings.append((_milliseconds(call, copies), tile))
        except triton.OutOfResources:
            continue  # the compiler needed more than the operands' share; other candidates remain
    return min(timings, key=lambda timing: timing[0])


def _milliseconds(call: Callable[[ExpertWeights], object], copies: list[ExpertWeights]) -> float:
    """Median time of one call, over replays of a graph with one call per copy of the weights."""
    call(copies[0])
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for weights in copies:
            call(weights)
    times: list[float] = []
    for _ in range(_RUNS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / len(copies))
    return sorted(times)[_RUNS // 2]


def _layer(
    shape: LayerShape, bucket: int, device: torch.device
) -> tuple[Tensor, list[ExpertWeights], MoeOptions]:
    rows = 2 * shape.width if shape.gated else shape.width
    num_tokens = ceil_div(bucket * shape.num_experts, shape.top_k)

    def random(*size: int) -> Tensor:
        return torch.randn(size, device=device, dtype=shape.dtype).mul_(float(size[-1]) ** -0.5)

    def weights() -> ExpertWeights:
        w1 = random(shape.num_experts, rows, shape.hidden)
        w2 = random(shape.num_experts, shape.hidden, shape.width)
        return ExpertWeights(w1, random(*w1.shape[:2]), w2, random(*w2.shape[:2]))

    layer_bytes = shape.num_experts * (rows + shape.width) * shape.hidden * shape.dtype.itemsize
    copies = [weights() for _ in range(1 + ceil_div(_COLD_BYTES, layer_bytes))]
    options = MoeOptions(top_k=shape.top_k, activation="silu" if shape.gated else "gelu", gated=shape.gated)
    return random(num_tokens, shape.hidden), copies, options


def _even_routing(num_tokens: int, shape: LayerShape, device: torch.device) -> Routing:
    pairs = torch.arange(num_tokens * shape.top_k, device=device).view(num_tokens, shape.top_k)
    return Routing(torch.ones_like(pairs, dtype=torch.float32), pairs % shape.num_experts)
