"""Raw samples of one run as a compressed file. `headless` writes it; the report reads it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewshard_loadtest.measure import Sample

ROW = np.dtype(
    [
        ("sent_s", "f8"),  # seconds since measuring began; negative during warm-up
        ("latency_ms", "f4"),
        ("lag_ms", "f4"),
        ("item", "i4"),
        ("model", "i2"),
        ("label", "i2"),
        ("error", "i2"),
    ]
)
"""`model`, `label` and `error` are indices into lists of names; -1 for none."""


@dataclass(frozen=True, slots=True)
class Recording:
    """All requests of one run, warm-up included, ordered by `sent_s`.

    rows: array of dtype `ROW`.
    begun_at: start of the measured time, epoch seconds.
    measured_s: length of the measured time.
    models, labels, errors: the names that rows refer to.
    """

    rows: NDArray[Any]
    begun_at: float
    measured_s: float
    models: tuple[str, ...]
    labels: tuple[str, ...]
    errors: tuple[str, ...]

    @property
    def measured(self) -> NDArray[Any]:
        """The rows sent within the measured time."""
        sent = self.rows["sent_s"]
        rows: NDArray[Any] = self.rows[(sent >= 0) & (sent < self.measured_s)]
        return rows

    def latencies_ms(self, model: str | None = None) -> NDArray[np.float64]:
        """Ascending latencies of successful responses within the measured time, of all models by default."""
        rows = self.measured
        if model is not None:
            rows = rows[rows["model"] == self.models.index(model)] if model in self.models else rows[:0]
        return np.sort(rows["latency_ms"][rows["error"] < 0].astype(np.float64))

    def save(self, path: Path) -> None:
        """Write the samples, compressed to some ten bytes per request."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            np.savez_compressed(
                file,
                rows=self.rows,
                when=np.array([self.begun_at, self.measured_s]),
                models=np.array(self.models, dtype=np.str_),
                labels=np.array(self.labels, dtype=np.str_),
                errors=np.array(self.errors, dtype=np.str_),
            )

    @classmethod
    def load(cls, path: Path) -> "Recording":
        """The inverse of `save`; never unpickles."""
        with np.load(path, allow_pickle=False) as file:
            begun_at, measured_s = (float(value) for value in file["when"])
            names = [tuple(str(name) for name in file[key]) for key in ("models", "labels", "errors")]
            return cls(file["rows"], begun_at, measured_s, *names)


def record(samples: Sequence[Sample], begun_at: float, measured_s: float) -> Recording:
    """The samples as a `Recording`."""
    models = _names(sample.model for sample in samples)
    labels = _names(sample.label for sample in samples)
    errors = _names(sample.error for sample in samples)
    rows = np.array(
        [
            (
                sample.sent_at - begun_at,
                sample.latency_ms,
                sample.lag_ms,
                sample.item,
                models[sample.model],
                -1 if sample.label is None else labels[sample.label],
                -1 if sample.error is None else errors[sample.error],
            )
            for sample in sorted(samples, key=lambda sample: sample.sent_at)
        ],
        dtype=ROW,
    )
    return Recording(rows, begun_at, measured_s, tuple(models), tuple(labels), tuple(errors))


def merge(parts: Sequence[Recording]) -> Recording:
    """Merge recordings of generators that ran at the same time, on the clock of the first."""
    samples = [sample for part in parts for sample in samples_of(part)]
    return record(samples, parts[0].begun_at, min(part.measured_s for part in parts))


def samples_of(recording: Recording) -> list[Sample]:
    """The rows of a recording as samples."""

    def name(names: Sequence[str], place: int) -> str | None:
        return None if place < 0 else names[place]

    return [
        Sample(
            sent_at=recording.begun_at + float(row["sent_s"]),
            latency_ms=float(row["latency_ms"]),
            error=name(recording.errors, int(row["error"])),
            lag_ms=float(row["lag_ms"]),
            item=int(row["item"]),
            model=recording.models[int(row["model"])],
            label=name(recording.labels, int(row["label"])),
        )
        for row in recording.rows
    ]


def _names(names: Iterable[str | None]) -> dict[str, int]:
    """Each distinct name with its index."""
    return {name: place for place, name in enumerate(dict.fromkeys(n for n in names if n is not None))}
