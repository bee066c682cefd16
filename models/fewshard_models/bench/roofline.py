"""What the machine could do at best: measured product rate, copy bandwidth, and the time floor they give."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from fewshard_models.bench.grid import Point
from fewshard_models.bench.timing import Clock
from fewshard_models.devices import DTYPES

_PRODUCT_SIZE = {"cpu": 2048, "cuda": 8192}
_REPEATS = 7
_UNKNOWN_CACHE_BYTES = 32 * 2**20
_CPU_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_KIBI = 1024


@dataclass(frozen=True, slots=True)
class Roofline:
    """Peak rates of a device in one dtype: products in FLOP/s, copies in bytes read plus written a second."""

    flop_per_s: float
    bytes_per_s: float

    def floor_s(self, point: Point, num_experts: int, element_bytes: int) -> float:
        """The least time for a point that reads `num_experts` experts: weights, rows in and rows out once."""
        numbers = num_experts * point.expert_numbers + 2 * point.num_tokens * point.shape.hidden
        return max(point.flop / self.flop_per_s, numbers * element_bytes / self.bytes_per_s)


def measure(dtype: str, device: str, clock: Clock, cache_bytes: int) -> Roofline:
    """Time a large square product in `dtype`, and a copy that no cache holds."""
    size = _PRODUCT_SIZE[device]
    matrix = torch.randn(size, size, device=device).to(DTYPES[dtype])
    product_s = _best_s(lambda: matrix @ matrix, clock)
    source = torch.ones(max(cache_bytes, _UNKNOWN_CACHE_BYTES), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = _best_s(lambda: target.copy_(source), clock)
    return Roofline(2 * size**3 / product_s, 2 * source.numel() / copy_s)


def last_level_cache_bytes(device: str, caches: Path = _CPU_CACHES) -> int:
    """Size of the largest cache of the first processor, or of the GPU's second level; 32 MiB if unknown."""
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
    # A peak is the best that was seen: what a neighbour takes away is no limit of the machine.
    return min(clock(call) for _ in range(_REPEATS))
