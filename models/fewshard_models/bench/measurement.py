"""Measurements of the kernel benchmark: interleaved timing, the machine's roofline, and GPU statistics.

Every round runs each call once, so that load on the machine affects all alike. The order is random in each
round, so that a call does not always find the same cache contents. The roofline is the time floor from a
measured product rate and copy bandwidth. CUDA graphs, launches and peak memory exist on a GPU only.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from fewshard_models.bench.baselines import Runner, Skipped
from fewshard_models.bench.grid import Point
from fewshard_models.bench.problem import Problem
from fewshard_models.devices import storage_dtype

# Measures the seconds of one call.
Clock = Callable[[Callable[[], object]], float]
# A call receives its number and selects weights and routing by it.
Call = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Budget:
    """Time budget of one point: rounds until `seconds` have passed, within both limits."""

    seconds: float = 6.0
    min_rounds: int = 7
    max_rounds: int = 200
    warmups: int = 2

    def num_rounds(self, round_s: float) -> int:
        return min(self.max_rounds, max(self.min_rounds, int(self.seconds / max(round_s, 1e-9))))


def clock_for(device: str) -> Clock:
    """The clock for "cpu" or "cuda"."""
    return _device_seconds if device == "cuda" else _seconds


def interleaved(calls: Mapping[str, Call], clock: Clock, budget: Budget) -> dict[str, list[float]]:
    """Seconds of each call in each round, in a random order per round; warm-up rounds are not counted."""
    numbers, order = count(), Random(0)

    def one_round() -> dict[str, float]:
        names = order.sample(list(calls), len(calls))
        return {name: _timed(calls[name], next(numbers), clock) for name in names}

    for _ in range(budget.warmups):
        last = one_round()
    rounds = [one_round() for _ in range(budget.num_rounds(sum(last.values())))]
    return {name: [seconds[name] for seconds in rounds] for name in calls}


def _timed(call: Call, number: int, clock: Clock) -> float:
    return clock(lambda: call(number))


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _device_seconds(call: Callable[[], object]) -> float:
    """Seconds by device events, from a call's first kernel to its last, including idle gaps."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    call()
    stop.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(stop)) / 1e3


_PRODUCT_SIZE = {"cpu": 2048, "cuda": 8192}
_REPEATS = 7
_UNKNOWN_CACHE_BYTES = 32 * 2**20
_CPU_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_KIBI = 1024


@dataclass(frozen=True, slots=True)
class Roofline:
    """Peak rates of a device in one dtype.

    flop_per_s: FLOP/s of products.
    bytes_per_s: bytes read plus bytes written per second by copies.
    """

    flop_per_s: float
    bytes_per_s: float

    def floor_s(self, point: Point, num_experts: int, element_bytes: int) -> float:
        """Minimum seconds for a point with `num_experts` experts; weights, input and output pass once."""
        numbers = num_experts * point.expert_numbers + 2 * point.num_tokens * point.shape.hidden
        return max(point.flop / self.flop_per_s, numbers * element_bytes / self.bytes_per_s)


def measure(dtype: str, device: str, clock: Clock, cache_bytes: int) -> Roofline:
    """The roofline, from a large square product in `dtype` and a copy that exceeds the caches."""
    size = _PRODUCT_SIZE[device]
    matrix = torch.randn(size, size, device=device).to(storage_dtype(dtype))
    product_s = _best_s(lambda: matrix @ matrix, clock)
    source = torch.ones(max(cache_bytes, _UNKNOWN_CACHE_BYTES), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = _best_s(lambda: target.copy_(source), clock)
    return Roofline(2 * size**3 / product_s, 2 * source.numel() / copy_s)


def last_level_cache_bytes(device: str, caches: Path = _CPU_CACHES) -> int:
    """Bytes of the first CPU's largest cache, or of the GPU's L2 cache; 32 MiB if unknown."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).L2_cache_size)
    sizes = [_parse_size(path.read_text()) for path in caches.glob("index*/size")]
    return max(sizes, default=_UNKNOWN_CACHE_BYTES)


def _parse_size(text: str) -> int:
    number = text.strip().upper()
    units = {"K": _KIBI, "M": _KIBI**2, "G": _KIBI**3}
    return int(number[:-1]) * units[number[-1]] if number[-1] in units else int(number)


def _best_s(call: Callable[[], object], clock: Clock) -> float:
    call()
    # The best time counts: load from other processes is no limit of the machine.
    return min(clock(call) for _ in range(_REPEATS))


def captured(run: Runner, problem: Problem) -> Runner:
    """`run` as CUDA graphs, one per copy of the weights. Raises Skipped if it cannot be captured."""
    try:
        graphs = [_capture(run, copy) for copy in range(problem.layer.num_copies)]
    except RuntimeError as error:
        torch.cuda.synchronize()
        raise Skipped(f"cannot be captured: {first_line(error)}") from error

    def replay(index: int) -> Tensor:
        graph, out = graphs[index % len(graphs)]
        graph.replay()
        return out

    return replay


def _capture(run: Runner, index: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(index)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(index)
    return graph, out


def num_launches(run: Runner, device: str) -> int | None:
    """Number of kernels, copies and fills that one call launches on the GPU; None on a CPU."""
    if device != "cuda":
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        run(0)
        torch.cuda.synchronize()
    return sum(1 for event in profiler.events() or () if event.device_type.name == "CUDA")


def peak_bytes(run: Runner, device: str) -> int | None:
    """Peak memory of one call, without its weights and input; None on a CPU."""
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(0)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type if it has none."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
