"""The settings a server is measured with, and the small grid in which the best are looked for."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

SHIPPED, TUNED = "as shipped", "tuned"
GRID_BATCHES = (16, 64)


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to run a server. None leaves a value to the server itself.

    `batch` is the most texts in a batch, `wait_ms` the longest wait for one to fill, `threads` those of one
    operation in each of `workers` processes.
    """

    name: str
    dtype: str | None = "fp32"
    batch: int | None = None
    wait_ms: float | None = None
    threads: int | None = None
    workers: int | None = None

    def __str__(self) -> str:
        given = {
            "": self.dtype,
            "batches of ": self.batch,
            "wait ms ": None if self.wait_ms is None else f"{self.wait_ms:g}",
            "threads ": self.threads,
            "workers ": self.workers,
        }
        words = [f"{label}{value}" for label, value in given.items() if value is not None]
        return ", ".join(words) or "its own"


def grid(dtype: str, num_cores: int, most_workers: int, wait_ms: float | None = 5.0) -> list[Setting]:
    """Every combination of two batch sizes and two ways to share the cores.

    All cores to one worker; and half of them to each of two workers or, where a server has one only, to it,
    which leaves the rest to its tokeniser and its HTTP.
    """
    half = max(num_cores // 2, 1)
    shares = [(num_cores, 1), (half, min(2, most_workers))]
    shares = [share for index, share in enumerate(shares) if share not in shares[:index]]
    base = Setting(TUNED, dtype, wait_ms=wait_ms)
    return [
        replace(base, batch=batch, threads=threads, workers=workers)
        for batch in GRID_BATCHES
        for threads, workers in shares
    ]


def best_of(rates: Mapping[Setting, float]) -> Setting:
    """The setting with the most good answers a second; the first of equals. Raises ValueError of none."""
    return max(rates, key=lambda setting: rates[setting])
