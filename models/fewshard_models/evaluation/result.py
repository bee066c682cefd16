"""The result of one model and seed, and its file: predictions and timings, kilobytes, no weights.

`assessment` and `store` make results, `table` reads them.
"""

import base64
import json
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fewshard_models.errors import DataError
from fewshard_models.evaluation import metrics
from fewshard_models.evaluation.costs import Cost
from fewshard_models.evaluation.metrics import Classes
from fewshard_models.evaluation.timing import BatchTime

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Share:
    """An accuracy over `n` items."""

    n: int
    accuracy: float


@dataclass(frozen=True, slots=True)
class Predicted:
    """Predictions on a data set.

    predictions, labels: int64 [N], indices into `names`.
    """

    dataset: str
    names: tuple[str, ...]
    predictions: Classes
    labels: Classes

    @property
    def accuracy(self) -> float:
        return metrics.accuracy(self.predictions, self.labels)

    @property
    def f1(self) -> float:
        return metrics.macro_f1(self.predictions, self.labels)


@dataclass(frozen=True, slots=True)
class Timings:
    """Times of one run.

    batches: times by batch size, in order.
    beside: the models timed in the same rounds.
    dense: digest of the weights that speed-ups are against; None if there were none.
    machine: where, when and with what versions.
    """

    batches: tuple[BatchTime, ...]
    beside: tuple[str, ...]
    dense: str | None
    machine: dict[str, str]


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one model and seed.

    weights: SHA-256 of the safetensors files, which ties accuracy, cost and times to one artefact.
    held_out: None if accuracy is meaningless.
    missing: the reason for that.
    limit: rows used of each data set; None for all.
    routing: by slice, share of tokens [layer][expert].
    peak_bytes: peak memory at a batch of 64.
    """

    model: str
    tier: str
    seed: int
    weights: str
    dtype: str
    card: dict[str, Any]
    cost: Cost
    machine: dict[str, str]
    held_out: Predicted | None = None
    missing: str | None = None
    limit: int | None = None
    slices: dict[str, Share] = field(default_factory=dict)
    ood: dict[str, Share] = field(default_factory=dict)
    corruptions: dict[str, Share] = field(default_factory=dict)
    routing: dict[str, list[list[float]]] = field(default_factory=dict)
    peak_bytes: int | None = None
    timings: Timings | None = None

    @property
    def task(self) -> str:
        return self.model.partition("-")[0]

    def batch_time(self, batch: int) -> BatchTime | None:
        """Return the time at a batch size; None if it was not measured."""
        found = [] if self.timings is None else [t for t in self.timings.batches if t.batch == batch]
        return found[0] if found else None


def to_dict(result: Result) -> dict[str, Any]:
    """Return JSON values: packed predictions, and metrics of them for human readers."""
    fields = asdict(result)
    fields["held_out"] = None if result.held_out is None else _packed(result.held_out)
    return {"format": FORMAT, **fields}


def save(result: Result, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(to_dict(result), indent=1, ensure_ascii=False) + "\n"
    temporary = file.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(file)


def load(file: Path) -> Result:
    """Read a file of `save`. Raises DataError with the file and, if known, the line."""
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{file}, line {error.lineno}: {error.msg}; delete it and measure again") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
        raise DataError(f"{file} is no result of format {FORMAT}; delete it and measure again")
    try:
        return _from_dict(fields)
    except KeyError as error:
        raise DataError(f"{file} lacks the field {error.args[0]!r}; delete it and measure again") from error
    except (TypeError, ValueError, AttributeError, zlib.error) as error:
        raise DataError(f"{file} is damaged: {error}; delete it and measure again") from error


def _from_dict(fields: dict[str, Any]) -> Result:
    shares = {
        name: {key: Share(**share) for key, share in fields[name].items()}
        for name in ("slices", "ood", "corruptions")
    }
    parsed = {
        "cost": Cost(**fields["cost"]),
        "held_out": _maybe(_unpacked, fields["held_out"]),
        "timings": _maybe(_timings, fields["timings"]),
    }
    return Result(**{**fields, **shares, **parsed})


def _maybe(parse: Callable[[dict[str, Any]], Any], fields: dict[str, Any] | None) -> Any:
    return None if fields is None else parse(fields)


def _timings(fields: dict[str, Any]) -> Timings:
    batches = tuple(BatchTime(**each) for each in fields["batches"])
    return Timings(batches, tuple(fields["beside"]), fields["dense"], fields["machine"])


def _packed(found: Predicted) -> dict[str, Any]:
    return {
        "dataset": found.dataset,
        "n": len(found.labels),
        "accuracy": round(found.accuracy, 6),
        "f1": round(found.f1, 6),
        "standard_error": round(metrics.standard_error(found.accuracy, len(found.labels)), 6),
        "confusion": metrics.confusion(found.predictions, found.labels, len(found.names)).tolist(),
        "names": list(found.names),
        "predictions": _encode(found.predictions),
        "labels": _encode(found.labels),
    }


def _unpacked(fields: dict[str, Any]) -> Predicted:
    found = Predicted(
        fields["dataset"],
        tuple(fields["names"]),
        _decode(fields["predictions"], fields["n"]),
        _decode(fields["labels"], fields["n"]),
    )
    if abs(found.accuracy - fields["accuracy"]) > 1e-5:
        raise ValueError(
            f"accuracy {fields['accuracy']} is not that of its predictions, {found.accuracy:.6f}"
        )
    return found


def _encode(classes: Classes) -> str:
    """Encode class indices below 256 as base64 of deflated bytes."""
    return base64.b64encode(zlib.compress(classes.astype(np.uint8).tobytes(), 9)).decode()


def _decode(text: str, count: int) -> Classes:
    classes = np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=np.uint8)
    if len(classes) != count:
        raise ValueError(f"{len(classes)} classes, expected {count}")
    return classes.astype(np.int64)
