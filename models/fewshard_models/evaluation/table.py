"""The paper's Table II from result files, and its verdicts in words; called by `report`.

`build_rows` makes one row a system, over its seeds. `rivals` compares each sparse system with its narrow
rival, `checks` lists targets met and missed, and `payers` lists classes that lose too much accuracy.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from fewshard_models.evaluation import metrics
from fewshard_models.evaluation.baselines import SYSTEMS, TARGET_BATCH, TARGETS, System, Target
from fewshard_models.evaluation.result import Result
from fewshard_models.evaluation.significance import Pairs, pair_up
from fewshard_models.evaluation.timing import BATCHES

NO_ACCURACY = "not measured: needs pretrained weights"
NOT_MADE = "not measured: no result file"


@dataclass(frozen=True, slots=True)
class Figure:
    """A mean over `n` seeds with its standard error.

    of_items: there is one seed, and the error is that of drawing the test items.
    """

    mean: float
    error: float | None
    n: int
    of_items: bool = False


@dataclass(frozen=True, slots=True)
class Speed:
    """Medians over seeds at one batch size.

    ms: milliseconds a batch.
    speedup: against the dense model of the same run; None for the dense model, or if none was in the run.
    realised: R = speed-up / MAC reduction; None likewise.
    """

    batch: int
    ms: float
    items_per_s: float
    speedup: float | None
    realised: float | None


@dataclass(frozen=True, slots=True)
class Row:
    """One system over its seeds.

    missing: why there is no accuracy; None if there is.
    macs_share: share of the dense model's MACs.
    robustness: mean accuracy by data set: "ood", "clean", "corrupted" and each kind.
    """

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
        """The lowest seed. Its cost stands for all: seeds differ in weights, not in shape."""
        return self.results[0] if self.results else None

    def speed(self, batch: int) -> Speed | None:
        return next((speed for speed in self.speeds if speed.batch == batch), None)


def build_rows(results: Sequence[Result]) -> list[Row]:
    """Return a row for every system in the table's order, with or without results; 8-bit ones only with."""
    by_model: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_model[result.model].append(result)
    shown = [each for each in SYSTEMS.values() if each.kind != "int8" or by_model[each.name]]
    return [_row(system, by_model) for system in shown]


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
    """Return accuracy for "ood", "clean" (the items that are corrupted), "corrupted" and each kind."""
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


EQUAL_MACS = 0.1
CHANCE = 0.05


def rivals(rows: Sequence[Row]) -> list[str]:
    """Return a sentence for each sparse system: whether it beats its narrow rival, and how surely."""
    by_name = {row.system.name: row for row in rows}
    return [_rival(row, by_name[row.system.narrow]) for row in rows if row.system.narrow and row.results]


def _rival(row: Row, narrow: Row) -> str:
    own, pairs = row.system.name, row.against_narrow
    if row.accuracy is None or narrow.accuracy is None or pairs is None:
        return f"{own} cannot be compared with {narrow.system.name}: {row.missing or narrow.missing}."
    points = 100 * (row.accuracy.mean - narrow.accuracy.mean)
    word = "beats" if points > 0 else "does not beat"
    figures = (
        f"{100 * row.accuracy.mean:.2f} against {100 * narrow.accuracy.mean:.2f} % ({points:+.2f} points)"
    )
    return (
        f"{own} {word} {narrow.system.name} in accuracy: {figures}; {_sureness(pairs)}.{_macs(row, narrow)}"
    )


def _sureness(pairs: Pairs) -> str:
    sure = [pair.mcnemar.p < CHANCE for pair in pairs.pairs]
    ps = ", ".join(f"{pair.mcnemar.p:.2g}" for pair in pairs.pairs)
    if all(sure):
        return f"more than chance in every seed (McNemar p = {ps})"
    if any(sure):
        return f"more than chance in {sum(sure)} of {len(sure)} seeds (McNemar p = {ps})"
    return f"a difference that chance explains (McNemar p = {ps})"


def _macs(row: Row, narrow: Row) -> str:
    if not row.macs_share or not narrow.macs_share:
        return ""
    shares = f"{row.macs_share:.2f} and {narrow.macs_share:.2f} of the dense model's MACs"
    if abs(row.macs_share / narrow.macs_share - 1) <= EQUAL_MACS:
        return f" They cost {shares}."
    return f" Not at equal MACs: {shares}."


@dataclass(frozen=True, slots=True)
class Check:
    """One promise. `met` is None if it could not be measured."""

    system: str
    promise: str
    found: str
    met: bool | None


def checks(rows: Sequence[Row]) -> list[Check]:
    """Compare every target of the small tier with the results."""
    by_name = {row.system.name: row for row in rows}
    found = []
    for target in TARGETS:
        row = by_name[target.system]
        found += _checks(target, row, by_name[row.system.dense or row.system.name])
    return found


def _checks(target: Target, row: Row, dense: Row) -> list[Check]:
    found = []
    mean = None if row.accuracy is None else 100 * row.accuracy.mean
    if target.accuracy is not None:
        found.append(
            _check(target, f"accuracy >= {target.accuracy:.1f} %", mean, target.accuracy, "{:.2f} %")
        )
    if target.below_dense is not None:
        gap = mean - 100 * dense.accuracy.mean if mean is not None and dense.accuracy else None
        promise = f"at most {target.below_dense} points below dense"
        found.append(_check(target, promise, gap, -target.below_dense, "{:+.2f} points"))
    if target.macs_share is not None:
        promise = f"MACs <= {target.macs_share:.2f} of dense"
        found.append(_check(target, promise, row.macs_share, target.macs_share, "{:.3f}", at_most=True))
    if target.realised is not None:
        speed = row.speed(TARGET_BATCH)
        promise = f"R >= {target.realised} at batch {TARGET_BATCH}"
        found.append(
            _check(target, promise, None if speed is None else speed.realised, target.realised, "{:.2f}")
        )
    return found


def _check(
    target: Target, promise: str, value: float | None, limit: float, form: str, at_most: bool = False
) -> Check:
    if value is None:
        return Check(target.system, promise, "not measured", None)
    return Check(target.system, promise, form.format(value), value <= limit if at_most else value >= limit)


def payers(rows: Sequence[Row]) -> list[str]:
    """Return a warning for each system with a class that loses over twice the average loss."""
    return [
        f"{row.system.name}: {', '.join(pairs.warnings)} points, against "
        f"{100 * pairs.change:+.2f} on average over all items."
        for row in rows
        if (pairs := row.against_dense) and pairs.warnings
    ]
