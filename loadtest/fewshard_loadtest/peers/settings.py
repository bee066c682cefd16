"""Settings of the benchmarked servers, and the small grid that is searched for the best one."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

SHIPPED, TUNED = "as shipped", "tuned"
GRID_BATCHES = (16, 64)


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to run a server. None leaves a value to the server.

    dtype: dtype of the model.
    batch: maximum number of texts in a batch.
    wait_ms: maximum wait for a batch to fill.
    threads: threads per operation, in each worker.
    workers: number of worker processes.
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
    """Every combination of two batch sizes and two ways to divide the cores.

    Either one worker gets all cores, or each of two workers gets half. A server limited to one worker then
    gets half, which leaves the rest to its tokeniser and HTTP.
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
    """The setting with the highest rate; the first among equals. Raises ValueError if `rates` is empty."""
    return max(rates, key=lambda setting: rates[setting])
