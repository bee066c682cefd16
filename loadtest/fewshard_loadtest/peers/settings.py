"""Settings of the benchmarked servers, and the small grid that is searched for the best one."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

SHIPPED, TUNED, FOR_ONE = "as shipped", "tuned", "tuned for 1 user"
GRID_BATCHES = (16, 64)
CUT = 16
"""Texts in a pass of a model whose batches are sorted by length: fewer are padded less."""
SHORT_WAIT_MS = 1.0
NEARLY = 0.97
"""A shorter wait is preferred if it keeps this share of the rate."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to run a server. None leaves a value to the server.

    dtype: dtype of the model.
    batch: maximum number of texts in a batch.
    wait_ms: maximum wait for a batch to fill.
    threads: threads per operation, in each worker.
    workers: number of worker processes.
    cut: a batch is sorted by length and run in cuts of so many texts.
    """

    name: str
    dtype: str | None = "fp32"
    batch: int | None = None
    wait_ms: float | None = None
    threads: int | None = None
    workers: int | None = None
    cut: int | None = None

    def __str__(self) -> str:
        given = {
            "": self.dtype,
            "batches of ": self.batch,
            "wait ms ": None if self.wait_ms is None else f"{self.wait_ms:g}",
            "threads ": self.threads,
            "workers ": self.workers,
            "sorted in cuts of ": self.cut,
        }
        words = [f"{label}{value}" for label, value in given.items() if value is not None]
        return ", ".join(words) or "its own"


@dataclass(frozen=True, slots=True)
class Tried:
    """What a setting of the grid gave: answers a second at 64 users, and the median latency of one user."""

    answered_rps: float
    p50_ms: float | None


def grid(
    dtype: str,
    num_cores: int,
    most_workers: int,
    wait_ms: float | None = 5.0,
    can_cut: bool = False,
    is_quick: bool = False,
) -> list[Setting]:
    """Every combination of two batch sizes, whole or cut, and two ways to divide the cores.

    Either one worker gets all cores, or each of two workers gets half. A server limited to one worker then
    gets half, which leaves the rest to its tokeniser and HTTP. Quick: the last batch size, two workers and a
    short wait.
    """
    half = max(num_cores // 2, 1)
    shares = [(num_cores, 1), (half, min(2, most_workers))]
    shares = [share for index, share in enumerate(shares) if share not in shares[:index]]
    base = Setting(TUNED, dtype, wait_ms=wait_ms)
    batches: list[tuple[int, int | None]] = [(batch, None) for batch in GRID_BATCHES]
    batches += [(GRID_BATCHES[-1], CUT)] if can_cut else []
    if is_quick:
        batches, shares = batches[-1:], shares if most_workers == 1 else shares[-1:]
        base = replace(base, wait_ms=None if wait_ms is None else SHORT_WAIT_MS)
    return [
        replace(base, batch=batch, cut=cut, threads=threads, workers=workers)
        for batch, cut in batches
        for threads, workers in shares
    ]


def best_of(tried: Mapping[Setting, Tried]) -> Setting:
    """The setting with the highest rate; the first among equals. Raises ValueError if `tried` is empty."""
    return max(tried, key=lambda setting: tried[setting].answered_rps)


def hastier(setting: Setting) -> Setting | None:
    """The same with a short wait; None if it has no wait or a short one."""
    if setting.wait_ms is None or setting.wait_ms <= SHORT_WAIT_MS:
        return None
    return replace(setting, wait_ms=SHORT_WAIT_MS)


def chosen(tried: Mapping[Setting, Tried]) -> Setting:
    """The best setting, with the short wait if that is tried too and nearly as fast."""
    best = best_of(tried)
    hasty = hastier(best)
    if hasty in tried and hasty is not None:
        return hasty if tried[hasty].answered_rps >= NEARLY * tried[best].answered_rps else best
    return best


def quickest(tried: Mapping[Setting, Tried]) -> Setting | None:
    """The setting with the lowest latency for one user, by another name; None if none answered."""
    known = {setting: one.p50_ms for setting, one in tried.items() if one.p50_ms is not None}
    return replace(min(known, key=lambda setting: known[setting]), name=FOR_ONE) if known else None
