"""Which experts a CPU multiplies together: neighbours in one batched product, or each alone. No tensors here.

Called by `packed` for every batch, so the work is a few look-ups for each expert.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

# Fewer are slower: such a product waits for its weights, and oneDNN copies rows that fill no 32 columns.
MIN_JOINED_ROWS = 32
# Rows of a joined product of more than two experts: more gain nothing, and their hidden units take memory.
MAX_JOINED_ROWS = 2048


class Segment(NamedTuple):
    """`num_experts` experts from `first` on, each over `num_rows` rows, those that only fill up included."""

    first: int
    num_experts: int
    num_rows: int


@dataclass(frozen=True)
class Cost:
    """Seconds an expert takes for a number of rows: as timed at `rows`, ascending, straight lines between."""

    rows: tuple[int, ...]
    seconds: tuple[float, ...]
    _known: dict[int, float] = field(default_factory=dict, repr=False, compare=False)

    def at(self, num_rows: int) -> float:
        found = self._known.get(num_rows)
        if found is None:
            found = self._known[num_rows] = self._interpolate(num_rows)
        return found

    def _interpolate(self, num_rows: int) -> float:
        right = min(max(1, bisect_left(self.rows, num_rows)), len(self.rows) - 1)
        (x0, x1), (y0, y1) = self.rows[right - 1 : right + 1], self.seconds[right - 1 : right + 1]
        return y0 + (y1 - y0) * (num_rows - x0) / (x1 - x0)


def rounded(num_rows: int) -> int:
    """`num_rows` rounded up: oneDNN compiles a kernel for each new number, at up to a millisecond.

    Powers of two up to 32, below which the products wait for their weights; then 32 by 32, a tile of AMX
    being sixteen columns wide; never more than sixteen steps an octave.

    >>> [rounded(num_rows) for num_rows in (3, 33, 2000)]
    [4, 64, 2048]
    """
    if num_rows <= 32:
        return 1 << (num_rows - 1).bit_length()
    step = max(32, 1 << (num_rows.bit_length() - 5))
    return -(-num_rows // step) * step


def plan(counts: Sequence[int], alone: Cost, together: Cost | None) -> list[Segment]:
    """A segment, in ascending order, for the experts that have rows; `counts`: rows of each expert.

    Neighbours are joined while that is cheaper: the joined product multiplies each of them over as many rows
    as the fullest has. `together`: what an expert costs in such a product, None where there is none.
    """
    segments: list[Segment] = []
    for expert, count in enumerate(counts):
        if not count:
            continue
        new = Segment(expert, 1, rounded(count))
        last = segments[-1] if segments else None
        if last is not None and together is not None and last.first + last.num_experts == expert:
            rows = max(last.num_rows, new.num_rows, MIN_JOINED_ROWS)
            joined = Segment(last.first, last.num_experts + 1, rows)
            apart = _cost(last, alone, together) + _cost(new, alone, together)
            if fits(joined) and _cost(joined, alone, together) <= apart:
                segments[-1] = joined
                continue
        segments.append(new)
    return segments


def fits(segment: Segment) -> bool:
    """Whether a joined product may be that large."""
    return segment.num_experts <= 2 or segment.num_experts * segment.num_rows <= MAX_JOINED_ROWS


def _cost(segment: Segment, alone: Cost, together: Cost) -> float:
    each = alone if segment.num_experts == 1 else together
    return segment.num_experts * each.at(segment.num_rows)
