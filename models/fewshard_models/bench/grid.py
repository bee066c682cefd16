"""Grids of the kernel benchmark: points of (shape, dtype, experts, top-k, routing, tokens), as data."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import NamedTuple

TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536)
# Beyond this, a call takes seconds on a CPU and shows nothing new: time grows with the rows.
MAX_CPU_TOKENS = 4096
TARGET_TOKENS = (1, 4, 16, 17, 64, 256, 257, 1024, 4096)
NUM_EXPERTS = (8, 16, 64)
TOP_K = (1, 2, 6)
ROUTINGS = ("uniform", "zipf", "one-hot")
DEVICE_DTYPES = {"cpu": ("bf16", "fp32"), "cuda": ("bf16",)}
SIZES = ("quick", "default", "full")


class Shape(NamedTuple):
    """Sizes of one expert.

    hidden: input and output size.
    width: hidden units.
    gated: whether it has a gate (SwiGLU), and so two up projections.
    """

    hidden: int
    width: int
    gated: bool = False

    def __str__(self) -> str:
        return f"{self.hidden}x{self.width}{' gated' if self.gated else ''}"


SHAPES = (Shape(384, 1536), Shape(768, 3072), Shape(1024, 4096), Shape(2048, 1408, gated=True))
TARGET_SHAPES = SHAPES[:2]


@dataclass(frozen=True, slots=True)
class Point:
    """One layer and one batch of `num_tokens` rows. `dtype` as in "bf16"; `routing` is one of `ROUTINGS`."""

    shape: Shape
    dtype: str
    num_tokens: int
    num_experts: int = 8
    top_k: int = 1
    routing: str = "uniform"

    @property
    def activation(self) -> str:
        return "silu" if self.shape.gated else "gelu"

    @property
    def num_rows(self) -> int:
        """Total rows of all experts."""
        return self.num_tokens * self.top_k

    @property
    def expert_numbers(self) -> int:
        """Number of weights of one expert."""
        return (3 if self.shape.gated else 2) * self.shape.hidden * self.shape.width

    @property
    def flop(self) -> int:
        """FLOP of the experts' products: two per multiply-accumulate."""
        return 2 * self.num_rows * self.expert_numbers

    def __str__(self) -> str:
        layer = f"{self.shape} {self.dtype}, {self.num_experts} experts, top-{self.top_k}"
        return f"{layer}, {self.routing}, {self.num_tokens} tokens"


def points(size: str, device: str, dtypes: Sequence[str] | None = None) -> list[Point]:
    """The grid named `size` (one of `SIZES`), layer by layer; `dtypes` None: the device's usual ones."""
    chosen = tuple(dtypes or DEVICE_DTYPES[device])
    grids = {"quick": _quick, "default": _default, "full": _full}
    return list(dict.fromkeys(grids[size](device, chosen)))


def _tokens(device: str) -> tuple[int, ...]:
    return TOKENS if device == "cuda" else tuple(n for n in TOKENS if n <= MAX_CPU_TOKENS)


def _quick(_device: str, dtypes: Sequence[str]) -> Iterable[Point]:
    for dtype, num_tokens in product(dtypes, (1, 64, 256, 1024)):
        yield Point(SHAPES[0], dtype, num_tokens)


def _default(device: str, dtypes: Sequence[str]) -> Iterable[Point]:
    tokens = TARGET_TOKENS if device == "cpu" else TOKENS
    for shape, dtype in product(TARGET_SHAPES, dtypes):
        yield from (Point(shape, dtype, num_tokens) for num_tokens in tokens)
    yield from _other_layers(Point(SHAPES[0], dtypes[0], 256))
    if device == "cuda":
        gated = Point(SHAPES[3], dtypes[0], 1, num_experts=64, top_k=6)
        yield from (replace(gated, num_tokens=num_tokens) for num_tokens in tokens)


def _other_layers(base: Point) -> Iterable[Point]:
    """Variations of `base`, one in each dimension that the targets do not cover."""
    yield from (replace(base, routing=routing) for routing in ROUTINGS[1:])
    yield replace(base, top_k=2)
    yield replace(base, num_experts=16)


def _full(device: str, dtypes: Sequence[str]) -> Iterable[Point]:
    for shape, dtype, num_experts in product(SHAPES, dtypes, NUM_EXPERTS):
        for top_k, routing, num_tokens in product(TOP_K, ROUTINGS, _tokens(device)):
            yield Point(shape, dtype, num_tokens, num_experts, top_k, routing)
