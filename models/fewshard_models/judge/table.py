"""The paper's Table II from result files: one row a system, over its seeds; called by `fewshard table2`."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from fewshard_models.judge import metrics
from fewshard_models.judge.measure import BATCHES
from fewshard_models.judge.pairs import Pairs, pair_up
from fewshard_models.judge.result import Result
from fewshard_models.judge.systems import SYSTEMS, System

NO_ACCURACY = "not measured: needs pretrained weights"
NOT_MADE = "not measured: no result file"


@dataclass(frozen=True, slots=True)
class Figure:
    """A mean over `n` seeds with its standard error; of one seed, the error of drawing the test items
    (`of_items`)."""

    mean: float
    error: float | None
    n: int
    of_items: bool = False


@dataclass(frozen=True, slots=True)
class Speed:
    """Medians over seeds, milliseconds a batch. `speedup` and `realised` (R = speed-up / MAC reduction) are
    against the dense model of the same run; None for the dense model and where it was not beside."""

    batch: int
    ms: float
    items_per_s: float
    speedup: float | None
    realised: float | None


@dataclass(frozen=True, slots=True)
class Row:
    """A system's seeds together. `macs_share`: of the dense model's MACs. `robustness`: mean accuracy by
    data set ("ood", "corrupted" and each kind). `missing` says why there is no accuracy."""

    system: System
    results: tuple[Result, ...]
    missing: str | None
    accuracy: Figure | None
    f1: Figure | None
    macs_share: float | None
    speeds: tuple[Speed, ...]
    against_dense: Pairs | None
    against_narrow: Pairs | None
    robustness: dict[str, Figure]

    @property
    def first(self) -> Result | None:
        """The lowest seed, whose cost stands for all: seeds differ in weights, not in shape."""
        return self.results[0] if self.results else None

    def speed(self, batch: int) -> Speed | None:
        return next((speed for speed in self.speeds if speed.batch == batch), None)


def build_rows(results: Sequence[Result]) -> list[Row]:
    """A row for every system, those without results too, in the table's order."""
    by_model: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_model[result.model].append(result)
    return [_row(system, by_model) for system in SYSTEMS.values()]


def _row(system: System, by_model: dict[str, list[Result]]) -> Row:
    own = sorted(by_model[system.name], key=lambda result: result.seed)
    judged = [result for result in own if result.held_out is not None]
    return Row(
        system=system,
        results=tuple(own),
        missing=_missing(own, judged),
        accuracy=_accuracy(judged),
        f1=_figure([result.held_out.f1 for result in judged if result.held_out]),
        macs_share=_macs_share(own, by_model[system.dense] if system.dense else []),
        speeds=tuple(speed for batch in BATCHES if (speed := _speed(own, batch, by_model, system))),
        against_dense=pair_up(judged, by_model[system.dense]) if system.dense else None,
        against_narrow=pair_up(judged, by_model[system.narrow]) if system.narrow else None,
        robustness=_robustness(judged),
    )


def _missing(own: Sequence[Result], judged: Sequence[Result]) -> str | None:
    if judged:
        return None
    if not own:
        return NOT_MADE
    return f"not measured: {own[0].missing}" if own[0].missing else NO_ACCURACY


def _figure(values: list[float]) -> Figure | None:
    if not values:
        return None
    mean, error = metrics.mean_and_error(values)
    return Figure(mean, error, len(values))


def _accuracy(judged: Sequence[Result]) -> Figure | None:
    found = [result.held_out for result in judged if result.held_out is not None]
    if len(found) == 1:
        error = metrics.standard_error(found[0].accuracy, len(found[0].labels))
        return Figure(found[0].accuracy, error, 1, of_items=True)
    return _figure([each.accuracy for each in found])


def _macs_share(own: Sequence[Result], dense: Sequence[Result]) -> float | None:
    if not own or not dense:
        return None
    ours, theirs = own[0].cost.macs_counted, dense[0].cost.macs_counted
    return ours / theirs if ours and theirs else None


def _speed(
    own: Sequence[Result], batch: int, by_model: dict[str, list[Result]], system: System
) -> Speed | None:
    times = [time for result in own if (time := result.batch_time(batch))]
    if not times:
        return None
    speedups = [time.speedup for time in times if time.speedup is not None]
    speedup = median(speedups) if speedups and system.dense else None
    share = _macs_share(own, by_model[system.dense]) if system.dense else None
    realised = speedup * share if speedup is not None and share is not None else None
    ms = median(time.median_ms for time in times)
    return Speed(batch, ms, batch / ms * 1e3, speedup, realised)


def _robustness(judged: Sequence[Result]) -> dict[str, Figure]:
    """By "ood", "clean" (of the items that are corrupted), "corrupted" (all kinds) and each kind."""
    values: dict[str, list[float]] = defaultdict(list)
    for result in judged:
        if "all" in result.ood:
            values["ood"].append(result.ood["all"].accuracy)
        kinds: dict[str, list[float]] = defaultdict(list)
        for name, share in result.corruptions.items():
            if name == "clean":
                values["clean"].append(share.accuracy)
            else:
                kinds[name.rpartition(" ")[0]].append(share.accuracy)
        for kind, shares in kinds.items():
            values[kind].append(sum(shares) / len(shares))
        if kinds:
            values["corrupted"].append(sum(map(sum, kinds.values())) / sum(map(len, kinds.values())))
    return {name: figure for name, each in values.items() if (figure := _figure(each))}
