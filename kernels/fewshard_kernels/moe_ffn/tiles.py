"""Tile sizes of the expert products: a shipped table of measured choices, and a heuristic as fallback.

The Triton path calls this on every call, and `tune` does. It does not import triton, so it works anywhere.
Nothing is measured here: rows of `tiles.json` come only from `triton.tune` on the device that they name.
"""

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

TABLE = Path(__file__).with_name("tiles.json")
# Shared memory of one block in KiB, by compute capability (CUDA programming guide, "Technical Specifications
# per Compute Capability"). Capabilities not listed here use the smallest.
_SHARED_KIB = {(8, 0): 163, (8, 6): 99, (8, 7): 163, (8, 9): 99, (9, 0): 227, (10, 0): 227, (12, 0): 99}
# Multiprocessors of the largest common device: A100, H100 and H200, B200.
_NUM_SMS = {(8, 0): 108, (9, 0): 132, (10, 0): 148}
MAX_BUCKET = 1024


@dataclass(frozen=True, slots=True)
class GemmTile:
    """Tile of one product: a program computes [block_m, block_n], `block_k` at a time.

    group_m: row tiles that pass through all column tiles before the next ones start.
    num_warps, num_stages: launch options of Triton.
    """

    block_n: int
    block_k: int
    group_m: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True)
class Tiles:
    """The tiles of a layer's two products. They share `block_m`, since they share the map of row tiles."""

    block_m: int
    first: GemmTile
    second: GemmTile


@dataclass(frozen=True, slots=True)
class LayerShape:
    """The key of a tile choice, besides rows per expert; `width` is I, gated or not."""

    capability: tuple[int, int]
    dtype: torch.dtype
    hidden: int
    width: int
    num_experts: int
    top_k: int
    gated: bool


def ceil_div(dividend: int, divisor: int) -> int:
    """The quotient, rounded up."""
    return -(-dividend // divisor)


def power_of_two(size: int) -> int:
    """The smallest power of two that is not below `size`, for `size` from 1."""
    return 1 << (size - 1).bit_length()


def rows_bucket(num_tokens: int, shape: LayerShape) -> int:
    """Mean rows per expert, rounded up to a power of two from 1 to 1024: the most important key."""
    return min(MAX_BUCKET, power_of_two(max(1, ceil_div(num_tokens * shape.top_k, shape.num_experts))))


@lru_cache(maxsize=4096)
def choose_tiles(shape: LayerShape, bucket: int) -> Tiles:
    """The tiles for a layer with about `bucket` rows per expert: measured if any, else heuristic."""
    return measured_tiles().get((shape, bucket)) or heuristic_tiles(shape, bucket)


def heuristic_tiles(shape: LayerShape, bucket: int) -> Tiles:
    """Tiles by general rules for such products; `bucket` as in `rows_bucket`.

    With few rows per expert, reading weights dominates: thin row tiles, a deep `block_k` and many programs.
    With many rows, the tensor cores dominate: square tiles, or wide ones if there are enough of them.
    """
    block_m = _block_m(shape, bucket)
    first = _gemm_tile(shape, bucket, block_m, shape.width, shape.hidden, 2 if shape.gated else 1)
    second = _gemm_tile(shape, bucket, block_m, shape.hidden, shape.width, 1)
    return Tiles(block_m, first, second)


def shared_bytes(shape: LayerShape, block_m: int, tile: GemmTile, products: int) -> int:
    """Bytes of shared memory that the operands of a tile need, over all its stages."""
    return (block_m + products * tile.block_n) * tile.block_k * shape.dtype.itemsize * tile.num_stages


def shared_limit(capability: tuple[int, int]) -> int:
    """Bytes of shared memory that one block may use at that compute capability."""
    return 1024 * _SHARED_KIB.get(capability, min(_SHARED_KIB.values()))


_in_use: dict[tuple[LayerShape, int], Tiles] = {}


def measured_tiles() -> dict[tuple[LayerShape, int], Tiles]:
    """The table in use, by shape and bucket: the shipped one unless `use_tiles` was called."""
    return _in_use or _shipped_tiles()


def use_tiles(table: dict[tuple[LayerShape, int], Tiles]) -> None:
    """Use `table` from now on in this process; an empty table restores the shipped one."""
    _in_use.clear()
    _in_use.update(table)
    choose_tiles.cache_clear()


@lru_cache(maxsize=1)
def _shipped_tiles() -> dict[tuple[LayerShape, int], Tiles]:
    return dict(from_row(row) for row in json.loads(TABLE.read_text())["rows"])


def to_row(shape: LayerShape, bucket: int, tiles: Tiles) -> dict[str, Any]:
    """One row of the table."""
    described = {**asdict(shape), "dtype": str(shape.dtype).removeprefix("torch.")}
    return {**described, "rows_per_expert": bucket, **asdict(tiles)}


def from_row(row: dict[str, Any]) -> tuple[tuple[LayerShape, int], Tiles]:
    """Inverse of `to_row`; raises KeyError or TypeError if `row` is malformed."""
    values = dict(row)
    first, second = GemmTile(**values.pop("first")), GemmTile(**values.pop("second"))
    tiles = Tiles(values.pop("block_m"), first, second)
    bucket = values.pop("rows_per_expert")
    dtype, capability = getattr(torch, values.pop("dtype")), tuple(values.pop("capability"))
    return (LayerShape(capability=capability, dtype=dtype, **values), bucket), tiles


def _block_m(shape: LayerShape, bucket: int) -> int:
    widest = 64 if shape.dtype == torch.float32 else 128
    limits = ((16, 16), (32, 32), (128, 64))
    return min(widest, next((block for limit, block in limits if bucket <= limit), 128))


def _gemm_tile(
    shape: LayerShape, bucket: int, block_m: int, width: int, depth: int, products: int
) -> GemmTile:
    tile = _wished_tile(shape, bucket, block_m, width, products)
    row_tiles = shape.num_experts * ceil_div(bucket, block_m)
    block_n = _fill_device(shape, tile.block_n, row_tiles, width, narrowest=64 if block_m >= 64 else 32)
    block_k = min(tile.block_k, max(16, power_of_two(depth)))
    fitting = GemmTile(block_n, block_k, tile.group_m, tile.num_warps, tile.num_stages)
    while shared_bytes(shape, block_m, fitting, products) > shared_limit(shape.capability):
        fitting = GemmTile(block_n, block_k, tile.group_m, tile.num_warps, fitting.num_stages - 1)
    return fitting


def _wished_tile(shape: LayerShape, bucket: int, block_m: int, width: int, products: int) -> GemmTile:
    if shape.dtype == torch.float32:
        return GemmTile(block_n=64 // products, block_k=32, group_m=8, num_warps=4, num_stages=3)
    if block_m <= 32:
        return GemmTile(block_n=64, block_k=128, group_m=8, num_warps=4, num_stages=4)
    if block_m == 64:
        return GemmTile(block_n=128 // products, block_k=64, group_m=8, num_warps=4, num_stages=4)
    wide = bucket >= 512 and shape.capability == (9, 0) and width >= 1024
    return GemmTile(256 // products if wide else 128 // products, 64, 8, num_warps=8, num_stages=3)


def _fill_device(shape: LayerShape, block_n: int, row_tiles: int, width: int, narrowest: int) -> int:
    """The widest column tile, up to `block_n`, with at least one program per multiprocessor."""
    block_n = min(block_n, max(16, power_of_two(width)))
    while block_n > narrowest and row_tiles * ceil_div(width, block_n) < _NUM_SMS.get(shape.capability, 80):
        block_n //= 2
    return block_n
