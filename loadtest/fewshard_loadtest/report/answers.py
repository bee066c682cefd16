"""Accuracy of the answers under load, from raw samples and the payload's true labels."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fewshard_loadtest.report.statistics import mcnemar, wilson
from fewshard_loadtest.samples_file import Recording

MAX_NAMED = 5
"""Labels that a sentence names."""


@dataclass(frozen=True, slots=True)
class Share:
    """`right` correct answers out of `num`, with a 95 % interval (Wilson)."""

    num: int
    right: int

    @property
    def value(self) -> float | None:
        return self.right / self.num if self.num else None

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.right, self.num)


@dataclass(frozen=True, slots=True)
class Answers:
    """One model's answers.

    labels: the first answer to each item.
    num_changed: number of items with a different answer later on.
    """

    labels: dict[int, str]
    num_changed: int

    @property
    def num_items(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class Paired:
    """Two models, compared on the items that both answered.

    num: number of these items.
    flips: items with different labels, right or wrong.
    only_dense, only_this: items that only that model labelled correctly.
    """

    num: int
    flips: int
    only_dense: int
    only_this: int

    @property
    def p(self) -> float:
        """p of McNemar's test; below 0.05, the difference is more than chance."""
        return mcnemar(self.only_dense, self.only_this)


def answers_of(recordings: Iterable[Recording], model: str) -> Answers:
    """One model's answers in all runs, warm-ups included; failed requests have none."""
    labels: dict[int, str] = {}
    changed: set[int] = set()
    for recording in recordings:
        if model not in recording.models:
            continue
        rows = recording.rows[recording.rows["model"] == recording.models.index(model)]
        rows = rows[(rows["label"] >= 0) & (rows["item"] >= 0)]
        for item, place in zip(rows["item"].tolist(), rows["label"].tolist(), strict=True):
            label = recording.labels[place]
            if labels.setdefault(item, label) != label:
                changed.add(item)
    return Answers(labels, len(changed))


def accuracy(answers: Answers, truth: Sequence[str]) -> Share | None:
    """Accuracy; None if the true labels are unknown, or if no predicted label is among them."""
    known = {name.lower() for name in truth}
    if not truth or not {label.lower() for label in answers.labels.values()} & known:
        return None
    return Share(len(answers.labels), sum(_is_right(answers, item, truth) for item in answers.labels))


def in_terms_of(names: Sequence[str], labels: Sequence[str]) -> list[str]:
    """The true labels' names as the model calls them.

    Data sets have labels as numbers, or as `LABEL_1`. They are read as indices into the model's labels,
    unless the model's own labels are called so.
    """
    own = {label.lower() for label in labels}
    places = [_place(name, len(labels)) for name in names]
    if any(name.lower() in own for name in names) or None in places:
        return [*names]
    return [labels[place] for place in places if place is not None]


def _place(name: str, num_labels: int) -> int | None:
    number = name.lower().removeprefix("label_")
    place = int(number) if number.isascii() and number.isdigit() and len(number) < 9 else num_labels
    return place if place < num_labels else None


def mismatch(truth: Sequence[str], labels: Sequence[str]) -> str:
    """What is wrong if true labels are not labels of the model; "" if nothing."""
    own = {label.lower() for label in labels}
    strange = [name for name in truth if name.lower() not in own] if labels else []
    if not strange:
        return ""
    which = ", ".join([*dict.fromkeys(strange)][:MAX_NAMED])
    there = ", ".join(labels[:MAX_NAMED]) + (", …" if len(labels) > MAX_NAMED else "")
    if len(strange) == len(truth):
        return f"no accuracy, because the payload's labels ({which}) are none of the model's ({there})"
    return f"{len(strange):,} of {len(truth):,} items count as wrong: the model has no label {which}"


def by_class(answers: Answers, truth: Sequence[str]) -> dict[str, Share]:
    """Accuracy for the items of each true class."""
    items: dict[str, list[int]] = {}
    for item in answers.labels:
        items.setdefault(truth[item], []).append(item)
    return {
        name: Share(len(own), sum(_is_right(answers, item, truth) for item in own))
        for name, own in sorted(items.items())
    }


def paired(this: Answers, dense: Answers, truth: Sequence[str]) -> Paired:
    """Compare this model with the dense one."""
    both = this.labels.keys() & dense.labels.keys()
    right = [(_is_right(this, item, truth), _is_right(dense, item, truth)) for item in both]
    return Paired(
        num=len(both),
        flips=sum(this.labels[item] != dense.labels[item] for item in both),
        only_dense=sum(not own and theirs for own, theirs in right),
        only_this=sum(own and not theirs for own, theirs in right),
    )


def _is_right(answers: Answers, item: int, truth: Sequence[str]) -> bool:
    return answers.labels[item].lower() == truth[item].lower()
