"""What the labels of a text's tokens say together: names, places and the like, with their places in the text.

The rules are those of transformers' token-classification pipeline, so that results can be compared with it.
This file imports neither torch nor transformers: a server asks it where no network runs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fewshard_core.activation import softmax
from fewshard_core.values import TokenLabels, Window

Aggregation = Literal["none", "simple", "first", "average", "max"]
AGGREGATIONS: tuple[str, ...] = get_args(Aggregation)
DEFAULT_AGGREGATION: Aggregation = "simple"
OUTSIDE = ("O",)
"""The label of tokens that belong to nothing, which answers leave out."""

Scores = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Entity:
    """A part of a text with a label.

    start, end: its place in the text, in characters.
    """

    label: str
    score: float
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Piece:
    """A token or a word of one window, with its best label as the model has it."""

    label: str
    score: float
    start: int
    end: int

    @property
    def tag(self) -> str:
        """The label without B- or I-."""
        return self.label[2:] if self.label.startswith(("B-", "I-")) else self.label


def entities_of(
    tokens: TokenLabels,
    labels: Sequence[str],
    aggregation: str = DEFAULT_AGGREGATION,
    ignore_labels: Sequence[str] = OUTSIDE,
    is_raw: bool = False,
) -> list[Entity]:
    """Return what a text holds, in its order.

    aggregation: "none" gives each token its label. The others join neighbours of one kind, where B- begins a
        new one: "simple" tokens; "first", "average" and "max" words, which have the label of their first
        token, of the mean of their tokens' scores, or of the token that is surest.
    ignore_labels: what is left out, by label or, where tokens are joined, by kind.
    is_raw: scores are logits.
    """
    found: list[list[Entity]] = []
    for window, logits in zip(tokens.windows, tokens.by_window(), strict=True):
        scores = logits if is_raw else softmax(logits)
        pieces = list(_pieces(window, scores, labels, aggregation)) if len(scores) else []
        joined = _as_they_are(pieces) if aggregation == "none" else list(_joined(pieces))
        found.append([each for each in joined if each.label not in ignore_labels])
    if len(found) == 1:
        return found[0]
    return _each_token_once(tokens, found) if aggregation == "none" else _longest(found)


def _pieces(window: Window, scores: Scores, labels: Sequence[str], aggregation: str) -> Iterator[_Piece]:
    if aggregation in ("none", "simple"):
        begins = np.arange(len(scores))
    else:
        begins = np.flatnonzero(~window.continues)
        begins = begins if len(begins) and begins[0] == 0 else np.insert(begins, 0, 0)
    ends = np.append(begins[1:], len(scores))
    for first, behind in zip(begins.tolist(), ends.tolist(), strict=True):
        row = _of_word(scores[first:behind], aggregation)
        best = int(row.argmax())
        start, end = int(window.starts[first]), int(window.ends[behind - 1])
        yield _Piece(labels[best], float(row[best]), start, end)


def _of_word(scores: Scores, aggregation: str) -> Scores:
    """Return the scores [num_labels] of a word, of those of its tokens."""
    if len(scores) == 1 or aggregation == "first":
        row: Scores = scores[0]
    elif aggregation == "max":
        row = scores[scores.max(axis=1).argmax()]
    else:
        row = scores.mean(axis=0)
    return row


def _as_they_are(pieces: Sequence[_Piece]) -> list[Entity]:
    return [Entity(each.label, each.score, each.start, each.end) for each in pieces]


def _joined(pieces: Sequence[_Piece]) -> Iterator[Entity]:
    """Yield runs of pieces with one tag; a piece with B- begins another."""
    run: list[_Piece] = []
    for piece in pieces:
        if run and (piece.tag != run[-1].tag or piece.label.startswith("B-")):
            yield _entity(run)
            run = []
        run.append(piece)
    if run:
        yield _entity(run)


def _entity(run: Sequence[_Piece]) -> Entity:
    kind = run[0].label.split("-", 1)[-1]
    return Entity(kind, float(np.mean([each.score for each in run])), run[0].start, run[-1].end)


def _longest(found: Sequence[Sequence[Entity]]) -> list[Entity]:
    """Return the entities of all windows; of those that overlap, the longest, or of equal ones the surest."""
    kept: list[Entity] = []
    for each in sorted((one for window in found for one in window), key=lambda one: one.start):
        if not kept or not kept[-1].start <= each.start < kept[-1].end:
            kept.append(each)
        elif (each.end - each.start, each.score) > (kept[-1].end - kept[-1].start, kept[-1].score):
            kept[-1] = each
    return kept


def _each_token_once(tokens: TokenLabels, found: Sequence[Sequence[Entity]]) -> list[Entity]:
    """Return the tokens of all windows; of one in two, what that window says that shows more around it."""
    bounds = [
        (int(window.starts[0]), int(window.ends[-1])) if len(window.rows) else (0, 0)
        for window in tokens.windows
    ]

    def around(place: tuple[int, int], window: int) -> int:
        return min(place[0] - bounds[window][0], bounds[window][1] - place[1])

    kept: dict[tuple[int, int], tuple[int, Entity]] = {}
    for number, window in enumerate(found):
        for each in window:
            place = each.start, each.end
            if place not in kept or around(place, number) > around(place, kept[place][0]):
                kept[place] = number, each
    return [each for _, (_, each) in sorted(kept.items())]
