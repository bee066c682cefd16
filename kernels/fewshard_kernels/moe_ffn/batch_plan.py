"""Plans which experts a CPU computes in one batched product and which it computes alone. Uses no tensors.

`packed` calls this for every batch, so planning costs only a few look-ups per expert.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

# Smaller joined products are slower: they are bound by reading weights, and oneDNN copies rows that do not
# fill 32 columns.
MIN_JOINED_ROWS = 32
# Row limit for joining more than two experts: larger products gain nothing, and hidden units use memory.
MAX_JOINED_ROWS = 2048


class Segment(NamedTuple):
    """Consecutive experts that are computed together.

    first: index of the first expert.
    num_experts: number of consecutive experts.
    num_rows: rows per expert, padding included.
    """

    first: int
    num_experts: int
    num_rows: int


@dataclass(frozen=True)
class Cost:
    """Seconds one expert takes as a function of its number of rows.

    rows: row counts that were timed, ascending.
    seconds: the time for each; values between them are interpolated linearly.
    """

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
    """`num_rows` rounded up, to limit the number of sizes: oneDNN compiles a kernel for each, in up to 1 ms.

    Up to 32, powers of two: such products are bound by reading weights. Above, multiples of 32 (an AMX tile
    is sixteen columns wide), with at most sixteen steps per octave.
    >>> [rounded(num_rows) for num_rows in (3, 33, 2000)]
    [4, 64, 2048]
    """
    if num_rows <= 32:
        return 1 << (num_rows - 1).bit_length()
    step = max(32, 1 << (num_rows.bit_length() - 5))
    return -(-num_rows // step) * step


def plan(counts: Sequence[int], alone: Cost, together: Cost | None) -> list[Segment]:
    """Segments, in ascending order, that cover the experts with at least one row.

    counts: rows of each expert.
    alone: cost of an expert computed by itself.
    together: cost of an expert in a joined product, or None if joined products are not available.
    Neighbours are joined while that is cheaper: a joined product pads each expert to the largest row count.
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
    """Whether a joined product may be as large as `segment`."""
    return segment.num_experts <= 2 or segment.num_experts * segment.num_rows <= MAX_JOINED_ROWS


def _cost(segment: Segment, alone: Cost, together: Cost) -> float:
    each = alone if segment.num_experts == 1 else together
    return segment.num_experts * each.at(segment.num_rows)
