"""Makes an 8-bit checkpoint of one on disk, and measures what it lost; `fewshard quantize` calls it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewshard_core.formats import FORMATS
from fewshard_core.values import Item
from fewshard_models.card import Card, load_card
from fewshard_models.classifier.load import from_checkpoint, load, load_checkpoint
from fewshard_models.classifier.network import NetworkClassifier
from fewshard_models.data.items import Items
from fewshard_models.devices import choose_dtype, storage_dtype
from fewshard_models.errors import CheckpointError, DataError, UnusableInput
from fewshard_models.evaluation.accuracy import write_card
from fewshard_models.quantised.calibration import RULES
from fewshard_models.quantised.coding import coder_for, codes_for
from fewshard_models.quantised.writing import whole_directory, write_int8

FORMAT = "int8"
MAX_COMPARED = 2000
"""Rows on which the two networks are compared."""

Say = Callable[[str], None]
Tensors = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Compared:
    """The 8-bit network beside the fp32 one on the same rows.

    calibrated_on: whether they are the rows that it was calibrated on, because there were no others.
    flips: rows with another label.
    largest_difference: of a logit.
    accuracy, accuracy_fp32: None without labels.
    """

    data: str
    rows: int
    calibrated_on: bool
    flips: int
    largest_difference: float
    accuracy: float | None = None
    accuracy_fp32: float | None = None


@dataclass(frozen=True, slots=True)
class Quantised:
    """How a checkpoint was quantised; `extra["quantised"]` of its card.

    data, rows: the calibration file and the number of its rows that were used.
    rule: how the codes of activations were chosen, of `RULES`.
    layers: number of 8-bit layers.
    """

    format: str
    data: str
    rows: int
    rule: str
    layers: int
    compared: Compared


def quantise(
    source: Path,
    out: Path,
    read: Callable[[NetworkClassifier], tuple[Items, Items | None]],
    limit: int = 2048,
    say: Say = lambda _text: None,
) -> Quantised:
    """Quantise the checkpoint in `source` to 8 bits and write it, with a card, to `out`, a new directory.

    read: given the loaded model, returns the calibration items, and those to compare on; None for the
        calibration items that are left.
    limit: number of rows to calibrate on.

    Raises CheckpointError for a network that cannot be quantised, a CPU that cannot multiply 8 bits, and an
    `out` that exists; DataError for items of which none is usable. Nothing is written then.
    """
    _require(source, out)
    model = load(source, "cpu", "fp32")
    coder = coder_for(model.network)
    if not coder.num_layers:
        raise CheckpointError(f"{source} has no layer to quantise; serve it with dtype auto")
    data, others = read(model)
    rows, left = _split(len(data), limit)
    calibration = _usable(model, data.at(rows))
    items, labels = calibration
    say(f"calibrating on {len(items)} rows of {data.name}")
    samples = coder.sample(lambda: model.run_all(items))
    expected = model.run_all(items)
    errors: dict[str, float] = {}
    tensors: dict[str, Tensors] = {}
    for rule, choose in RULES.items():
        tensors[rule] = coder.encode(codes_for(samples, choose))
        errors[rule] = float(np.square(_coded(source, tensors[rule]).run_all(items) - expected).mean())
        say(f"codes by {rule}: root mean squared error of a logit {errors[rule] ** 0.5:.4f}")
    rule = min(errors, key=errors.__getitem__)
    held_out = others if others is not None else data.at(left)
    name = held_out.name
    if len(held_out):
        items, labels = _usable(model, held_out.at(_spread(len(held_out), MAX_COMPARED)))
    compared = _compare(model, _coded(source, tensors[rule]), items, labels)
    compared = replace(compared, data=name, calibrated_on=not len(held_out))
    found = Quantised(FORMAT, data.name, len(calibration[0]), rule, coder.num_layers, compared)
    with whole_directory(out) as partial:
        write_int8(model.network, tensors[rule], source, partial)
        _write_card(partial, out.name, source, found, say)
    return found


def _require(source: Path, out: Path) -> None:
    if out.exists():
        raise CheckpointError(f"{out} exists already; choose a new directory")
    if not FORMATS[FORMAT].multiplies("cpu"):
        raise CheckpointError(
            "this CPU cannot multiply 8 bits: it lacks VNNI; quantise where the checkpoint will run"
        )
    card = load_card(source)
    if card is not None and "quantised" in card.extra:
        raise CheckpointError(f"{source} is quantised already; give the checkpoint that it was made of")


def _split(num_rows: int, limit: int) -> tuple[list[int], list[int]]:
    """Return `limit` rows spread over all, and the others."""
    chosen = _spread(num_rows, limit)
    return chosen, sorted(set(range(num_rows)) - set(chosen))


def _spread(num_rows: int, count: int) -> list[int]:
    return [row * num_rows // min(num_rows, count) for row in range(min(num_rows, count))]


def _usable(model: NetworkClassifier, given: Items) -> tuple[list[Item], list[int] | None]:
    """Return the items that can be prepared, with their labels. Raises DataError if there are none."""
    items: list[Item] = []
    rows: list[int] = []
    reason = "it has no rows"
    for row, each in enumerate(given.inputs):
        try:
            items += model.prepare([model.preprocessor.to_input(each)])
            rows.append(row)
        except (UnusableInput, OSError) as error:
            reason = str(error)
    if not items:
        raise DataError(f"{given.name} has no usable rows: {reason}")
    return items, None if given.labels is None else [given.labels[row] for row in rows]


def _coded(source: Path, tensors: Tensors) -> NetworkClassifier:
    checkpoint = load_checkpoint(source)
    coder_for(checkpoint.model).attach(tensors, storage_dtype(choose_dtype(device="cpu").name))
    checkpoint.model.requires_grad_(False)
    return from_checkpoint(checkpoint, source.name, "cpu", FORMAT)


def _compare(
    exact: NetworkClassifier, coded: NetworkClassifier, items: Sequence[Item], labels: Sequence[int] | None
) -> Compared:
    wanted, found = exact.run_all(items), coded.run_all(items)
    return Compared(
        data="",
        rows=len(items),
        calibrated_on=False,
        flips=int((wanted.argmax(axis=1) != found.argmax(axis=1)).sum()),
        largest_difference=round(float(np.abs(wanted - found).max()), 4),
        accuracy=_accuracy(found, labels),
        accuracy_fp32=_accuracy(wanted, labels),
    )


def _accuracy(logits: NDArray[np.float32], labels: Sequence[int] | None) -> float | None:
    return None if labels is None else round(float((logits.argmax(axis=1) == np.array(labels)).mean()), 6)


def _write_card(directory: Path, name: str, source: Path, found: Quantised, say: Say) -> Card:
    """Evaluate as every checkpoint is, where its task's data is here, and record how it was made."""
    before = load_card(source)
    about = {"recipe": f"quantize {source.name}", "seed": 0 if before is None else before.seed}
    try:
        card = write_card(directory, name, **about)  # type: ignore[arg-type]
    except (DataError, CheckpointError) as error:
        say(f"accuracy was measured on {found.compared.data} alone: {error}")
        card = write_card(directory, name, **about, unmeasured="see quantised")  # type: ignore[arg-type]
    card = replace(card, extra=card.extra | {"quantised": asdict(found)})
    card.save(directory)
    return card
