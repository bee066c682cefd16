"""Runs the kernel benchmark: every peer at every point of a grid, one row for each."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from statistics import median, quantiles

import torch

from fewshard_core.formats import FORMATS
from fewshard_models.bench.baselines import (
    DENSE,
    OURS,
    Builder,
    Runner,
    Skipped,
    activation_alone,
    builders,
    external_builders,
)
from fewshard_models.bench.grid import Point
from fewshard_models.bench.measurement import (
    Budget,
    Call,
    Roofline,
    captured,
    clock_for,
    first_line,
    interleaved,
    last_level_cache_bytes,
    measure,
    num_launches,
    peak_bytes,
)
from fewshard_models.bench.problem import Layer, Problem, make_layer, make_problem
from fewshard_models.devices import storage_dtype

# Maximum |y - y64| / |y64| over the checked rows for a correct result.
TOLERANCES = {each.name: each.kernel_tolerance for each in FORMATS if each.is_cast}
GRAPH = " (graph)"
_ACTIVATION = "activation"
_MAX_COPIES = 64


@dataclass(frozen=True, slots=True)
class Row:
    """One peer at one point. Without a measurement the figures are None.

    skipped: why there is no measurement.
    median_s, p90_s: seconds over the rounds.
    times_ours: its median divided by that of our op in the same mode.
    roofline_share: the roofline's time divided by the median.
    activation_share: time of the activation as a separate op, divided by the median.
    error: relative error against float64.
    """

    point: Point
    peer: str
    skipped: str | None = None
    rounds: int = 0
    median_s: float | None = None
    p90_s: float | None = None
    times_ours: float | None = None
    roofline_share: float | None = None
    activation_share: float | None = None
    error: float | None = None
    launches: int | None = None
    peak_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """All rows, with the machine's limits.

    cache_bytes: size of the last-level cache.
    copies: number of copies of the weights by layer.
    """

    device: str
    rows: list[Row]
    rooflines: dict[str, Roofline]
    cache_bytes: int
    copies: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Setup:
    """Device, time budget, and source trees of further peers by name."""

    device: str
    budget: Budget = field(default_factory=Budget)
    peers: Mapping[str, Path] = field(default_factory=dict)
    # None: as many copies as the last-level cache requires.
    num_copies: int | None = None


@torch.inference_mode()
def run(grid: Iterable[Point], setup: Setup, say: Callable[[str], None] = lambda _text: None) -> Measured:
    """Measure every point; `say` is called before each. Raises ValueError for an unknown peer."""
    grid, everyone = list(grid), {**builders(), **external_builders(setup.peers)}
    clock, cache = clock_for(setup.device), last_level_cache_bytes(setup.device)
    dtypes = dict.fromkeys(point.dtype for point in grid)
    rooflines = {dtype: measure(dtype, setup.device, clock, cache) for dtype in dtypes}
    measured = Measured(setup.device, [], rooflines, cache)
    for _, same_layer in groupby(enumerate(grid, start=1), key=lambda item: _layer_key(item[1])):
        layer: Layer | None = None
        for number, point in same_layer:
            say(f"[{number}/{len(grid)}] {point}")
            if layer is None:
                layer = make_layer(point, setup.num_copies or num_copies(point, cache), setup.device)
                measured.copies[_layer_name(point)] = layer.num_copies
            problem = make_problem(point, layer, setup.device)
            measured.rows.extend(measure_point(problem, everyone, setup, rooflines[point.dtype]))
    return measured


def num_copies(point: Point, cache_bytes: int) -> int:
    """Number of copies of a layer that exceed the last-level cache together; from 2 to 64."""
    layer_bytes = point.num_experts * point.expert_numbers * storage_dtype(point.dtype).itemsize
    return min(_MAX_COPIES, max(2, -(-5 * cache_bytes // (4 * layer_bytes))))


def _layer_key(point: Point) -> tuple[object, ...]:
    return (point.shape, point.dtype, point.num_experts)


def _layer_name(point: Point) -> str:
    return f"{point.shape} {point.dtype}, {point.num_experts} experts"


def measure_point(
    problem: Problem, everyone: Mapping[str, Builder], setup: Setup, roofline: Roofline
) -> list[Row]:
    """One row for each peer in the order of `everyone`, including skipped ones."""
    runners, skips = _build(problem, everyone, setup.device)
    calls: dict[str, Call] = {**runners, _ACTIVATION: activation_alone(problem)}
    times = interleaved(calls, clock_for(setup.device), setup.budget)
    rows = [_row(problem, name, runner, times, roofline) for name, runner in runners.items()]
    rows += [Row(problem.point, name, skipped=reason) for name, reason in skips.items()]
    order = [name + mode for mode in ("", GRAPH) for name in everyone]
    return sorted(rows, key=lambda row: order.index(row.peer))


def _build(
    problem: Problem, everyone: Mapping[str, Builder], device: str
) -> tuple[dict[str, Runner], dict[str, str]]:
    runners: dict[str, Runner] = {}
    skips: dict[str, str] = {}
    for name, builder in everyone.items():
        try:
            runners[name] = _tried(builder(problem))
            if device == "cuda":
                runners[name + GRAPH] = captured(runners[name], problem)
        except Skipped as skipped:
            skips[name + GRAPH if name in runners else name] = str(skipped)
    return runners, skips


def _tried(runner: Runner) -> Runner:
    """The runner, if its first call succeeds; a peer may lack a kernel for this device or dtype."""
    try:
        runner(0)
    except (RuntimeError, ValueError, TypeError, AttributeError, NameError) as error:
        raise Skipped(f"fails here: {first_line(error)}") from error
    return runner


def _row(
    problem: Problem, name: str, runner: Runner, times: Mapping[str, Sequence[float]], roofline: Roofline
) -> Row:
    point, seconds = problem.point, times[name]
    mid, ours = median(seconds), times.get(OURS + (GRAPH if name.endswith(GRAPH) else ""))
    is_dense = name.removesuffix(GRAPH) == DENSE
    num_experts = point.top_k if is_dense else problem.num_hit_experts
    return Row(
        point,
        name,
        rounds=len(seconds),
        median_s=mid,
        p90_s=quantiles(seconds, n=10, method="inclusive")[-1],
        times_ours=mid / median(ours) if ours else None,
        roofline_share=roofline.floor_s(point, num_experts, problem.x.element_size()) / mid,
        activation_share=median(times[_ACTIVATION]) / mid,
        error=_error(problem, runner, is_dense),
        launches=num_launches(runner, problem.x.device.type),
        peak_bytes=peak_bytes(runner, problem.x.device.type),
    )


def _error(problem: Problem, runner: Runner, is_dense: bool) -> float:
    expected = problem.expected_dense if is_dense else problem.expected
    found = runner(0)[problem.checked_rows].double()
    return float((found - expected).norm() / expected.norm())
