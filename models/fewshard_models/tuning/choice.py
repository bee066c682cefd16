"""Decides among measured candidates. Plain values: no clock, no tensors."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

BATCHES = (1, 8, 32)
"""Items of the batches that are timed: one user's request, and batches of a busy server."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to run a model.

    name: a number format, a number of threads, or a number of tokens.
    items_per_s: for the items of a batch, how many are answered in a second; empty if it was not timed.
    dropped: why it must not be chosen; "" otherwise.
    """

    name: str
    items_per_s: Mapping[int, float]
    dropped: str = ""

    def score(self, sizes: Collection[int] = ()) -> float:
        """Return the geometric mean of items/s over batches of these sizes; of all sizes by default."""
        rates = [rate for size, rate in self.items_per_s.items() if size in sizes or not sizes]
        return float(prod(rates) ** (1 / len(rates))) if rates else 0.0


@dataclass(frozen=True, slots=True)
class Measured:
    """The outcome of one comparison.

    chosen: a candidate's name.
    reason: why, in words.
    candidates: all, the first being the one that others must beat.
    """

    chosen: str
    reason: str
    candidates: tuple[Candidate, ...]

    @property
    def is_timed(self) -> bool:
        return any(each.items_per_s for each in self.candidates)

    @property
    def order(self) -> list[str]:
        """The names to try, the chosen one first; without those that were dropped."""
        able = [each for each in self.candidates if not each.dropped]
        ranked = sorted(able, key=lambda each: (each.name != self.chosen, -each.score()))
        return [each.name for each in ranked]

    def as_json(self) -> dict[str, Any]:
        candidates = [
            {
                "name": each.name,
                "items_per_s": {str(items): rate for items, rate in each.items_per_s.items()},
                "dropped": each.dropped,
            }
            for each in self.candidates
        ]
        return {"chosen": self.chosen, "reason": self.reason, "candidates": candidates}

    @classmethod
    def of_json(cls, value: Any, names: Sequence[str]) -> "Measured | None":
        """What `as_json` wrote; None if it is something else, or a comparison of others than `names`."""
        try:
            candidates = tuple(_candidate(each) for each in value["candidates"])
            found = cls(str(value["chosen"]), str(value["reason"]), candidates)
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        is_whole = {each.name for each in candidates} == set(names) and found.chosen in found.order
        return found if is_whole else None


def _candidate(value: Any) -> Candidate:
    rates = {int(items): float(rate) for items, rate in value["items_per_s"].items()}
    return Candidate(str(value["name"]), rates, str(value["dropped"]))


def decide(candidates: Sequence[Candidate], unit: str = "", price: float = 1.05) -> Measured:
    """Choose the candidate with the most items/s: the geometric mean over the sizes that all were timed with.

    One user's request alone is among the sizes, so a choice that answers many faster but one late does not
    pay.

    price: how many times faster than one before it a candidate must be: those before are safer.
    unit: what follows a name in the reason, as " threads".
    Raises ValueError if every candidate was dropped.
    """
    able = [each for each in candidates if not each.dropped]
    if not able:
        raise ValueError("every candidate was dropped")
    timed = [each for each in able if each.items_per_s]
    if len(timed) < 2:
        return Measured((timed or able)[0].name, "no other was timed", tuple(candidates))
    best = timed[0]
    sizes = set.intersection(*(set(each.items_per_s) for each in timed))
    for each in timed[1:]:
        if each.score(sizes) > price * best.score(sizes):
            best = each
    return Measured(best.name, _reason(best, timed, sizes, unit, price), tuple(candidates))


def _reason(
    best: Candidate, timed: Sequence[Candidate], sizes: Collection[int], unit: str, price: float
) -> str:
    others = sorted((each for each in timed if each is not best), key=lambda each: -each.score(sizes))
    compared = ", ".join(f"{each.name}{unit} {each.score(sizes):,.0f}" for each in others)
    is_faster = others[0].score(sizes) > best.score(sizes)
    margin = f", which must be {price:g} times as fast to be chosen" if is_faster else ""
    return f"measured: {best.score(sizes):,.0f} items/s; {compared}{margin}"
