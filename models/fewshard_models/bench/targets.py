"""Performance targets of the CPU path, checked at each point of a run."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from fewshard_models.bench.baselines import DENSE, OURS, TRANSFORMERS, transformers_name
from fewshard_models.bench.grid import TARGET_SHAPES, Point
from fewshard_models.bench.kernels import Row

NUM_EXPERTS = 8
# The targets are for a CPU with matrix units; in float32 all peers spend their time in the same products.
DTYPE = "bf16"


@dataclass(frozen=True, slots=True)
class Check:
    """One point and its target.

    ours: our row.
    best_of_three: the fastest of transformers' implementations, named as in the rows.
    best_s, dense_s: seconds of that one, and of the dense layer.
    """

    point: Point
    ours: Row
    best_of_three: str
    best_s: float
    dense_s: float
    target: str
    met: bool

    @property
    def gain(self) -> float:
        """Speed-up over the best of transformers' three implementations."""
        return self.best_s / self.ours_s

    @property
    def times_dense(self) -> float:
        return self.ours_s / self.dense_s

    @property
    def ours_s(self) -> float:
        assert self.ours.median_s is not None
        return self.ours.median_s


@dataclass(frozen=True, slots=True)
class _Target:
    """A target for up to `max_tokens`; `is_met` takes seconds of ours, the best of three, and dense."""

    max_tokens: int
    text: str
    is_met: Callable[[float, float, float], bool]


_TARGETS = (
    _Target(16, "≥ 1.3x the best of three", lambda ours, best, _dense: best >= 1.3 * ours),
    _Target(256, "≥ 2x the best of three", lambda ours, best, _dense: best >= 2 * ours),
    _Target(
        4096,
        "≤ 1.2x dense, or ≥ 1.5x the best of three",
        lambda ours, best, dense: ours <= max(1.2 * dense, best / 1.5),
    ),
)


def checks(rows: Iterable[Row]) -> list[Check]:
    """A check for each point that has a target and rows for ours, dense and at least one of the three."""
    by_point: dict[Point, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        if row.median_s is not None and _has_target(row.point):
            by_point[row.point][row.peer] = row
    found = (_check(point, peers) for point, peers in by_point.items())
    return [check for check in found if check is not None]


def _has_target(point: Point) -> bool:
    plain = point.routing == "uniform" and point.top_k == 1 and point.num_experts == NUM_EXPERTS
    usual = point.dtype == DTYPE and point.shape in TARGET_SHAPES
    return plain and usual and point.num_tokens <= _TARGETS[-1].max_tokens


def _check(point: Point, peers: Mapping[str, Row]) -> Check | None:
    three = {
        name: peers[name].median_s or 0.0 for name in map(transformers_name, TRANSFORMERS) if name in peers
    }
    ours, dense = peers.get(OURS), peers.get(DENSE)
    if not three or ours is None or dense is None:
        return None
    best, (ours_s, dense_s) = min(three, key=three.__getitem__), (ours.median_s or 0.0, dense.median_s or 0.0)
    target = next(each for each in _TARGETS if point.num_tokens <= each.max_tokens)
    met = target.is_met(ours_s, three[best], dense_s)
    return Check(point, ours, best, three[best], dense_s, target.text, met)
