"""What the table means, in plain words: each system against its narrow rival, targets met and missed, and
who pays for the sparsity; called by `judge.report`."""

from collections.abc import Sequence
from dataclasses import dataclass

from fewshard_models.judge.pairs import Pairs
from fewshard_models.judge.systems import TARGET_BATCH, TARGETS, Target
from fewshard_models.judge.table import Row

EQUAL_MACS = 0.1
CHANCE = 0.05


def rivals(rows: Sequence[Row]) -> list[str]:
    """A sentence for each sparse system: whether it beats the narrow dense one, and how sure that is."""
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
    """One promise. `met` is None where it could not be measured."""

    system: str
    promise: str
    found: str
    met: bool | None


def checks(rows: Sequence[Row]) -> list[Check]:
    """Every target of the small tier against what was found."""
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
    """A warning for each system of which a class loses over twice the average loss against dense."""
    return [
        f"{row.system.name}: {', '.join(pairs.warnings)} points, against "
        f"{100 * pairs.change:+.2f} on average over all items."
        for row in rows
        if (pairs := row.against_dense) and pairs.warnings
    ]
