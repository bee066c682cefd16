"""Evaluates one loaded model: held-out set, slices, other domain, corruptions, routing, cost.

`fewshard evaluate --full` and `fewshard table2` call it, and add the times.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewshard_core.formats import FORMATS
from fewshard_models.bench.report import machine
from fewshard_models.card import load_card
from fewshard_models.classifier.base import CountsExperts
from fewshard_models.classifier.network import NetworkClassifier
from fewshard_models.evaluation import metrics
from fewshard_models.evaluation.corruptions import SEVERITIES
from fewshard_models.evaluation.costs import cost_of
from fewshard_models.evaluation.memory import peak_bytes
from fewshard_models.evaluation.result import Predicted, Result, Share
from fewshard_models.evaluation.slices import Rows, class_slices, routing_shares
from fewshard_models.evaluation.tasks import (
    EvaluatedTask,
    HeldOut,
    Inputs,
    evaluated_task,
    held_out,
    label_order,
)
from fewshard_models.evaluation.timing import prepared

MAX_CORRUPTED = 2000
"""Items on which corruptions are measured. Twelve corruptions of ten thousand images would take too long."""
PEAK_BATCH = 64
ACCURACY_MISSING = "accuracy_missing"
"""Key of a card's `extra`: why only times are meaningful, for example because the weights are random."""

Say = Callable[[str], None]
Predict = Callable[[Inputs], NDArray[np.int64]]


def evaluate_model(
    loaded: NetworkClassifier,
    name: str,
    tier: str,
    seed: int,
    limit: int | None = None,
    say: Say = lambda _text: None,
) -> Result:
    """Measure everything but the times.

    limit: use only the first rows of each data set.
    say: called with a message before each part.
    """
    directory = loaded.checkpoint.directory
    card = load_card(directory)
    about = {} if card is None else {k: v for k, v in asdict(card).items() if k != "golden"}
    dtype = FORMATS[loaded.info.dtype].compute
    say(f"{name}: cost and memory")
    common: dict[str, Any] = {
        "model": name,
        "tier": tier,
        "seed": seed,
        "weights": weights_digest(directory),
        "dtype": dtype,
        "card": about,
        "cost": cost_of(loaded.network),
        "machine": machine(loaded.device.type),
        "peak_bytes": _peak_bytes(loaded),
        "limit": limit,
    }
    if missing := about.get("extra", {}).get(ACCURACY_MISSING):
        return Result(**common, missing=str(missing))
    return Result(**common, **_accuracies(loaded, name, limit, say))


def weights_digest(directory: Path) -> str:
    """Return the SHA-256 over the safetensors files, in the order of their names."""
    digest = hashlib.sha256()
    for file in sorted(directory.glob("*.safetensors")):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _peak_bytes(loaded: NetworkClassifier) -> int | None:
    if loaded.device.type != "cpu":
        return None
    return peak_bytes(loaded.checkpoint.directory, loaded.info.dtype, PEAK_BATCH)


def _accuracies(loaded: NetworkClassifier, name: str, limit: int | None, say: Say) -> dict[str, Any]:
    task, test = evaluated_task(loaded.info.task), held_out(loaded.info.task, limit)
    order = label_order(loaded.checkpoint, test.names)

    def predict(inputs: Inputs) -> NDArray[np.int64]:
        classes: NDArray[np.int64] = loaded(inputs).logits[:, order].argmax(axis=1)
        return classes

    say(f"{name}: {len(test.labels):,} items of {test.dataset}")
    predictions = predict(test.inputs)
    slices = _slices(test, task)
    say(f"{name}: other domain and corruptions")
    return {
        "held_out": Predicted(test.dataset, test.names, predictions, test.labels),
        "slices": {key: _share(predictions, test.labels, rows) for key, rows in slices.items()},
        "ood": _other_domain(predict, task, limit),
        "corruptions": _corrupted(predict, task, test),
        "routing": _routing(loaded, test, slices),
    }


def _slices(test: HeldOut, task: EvaluatedTask) -> dict[str, Rows]:
    found = {**class_slices(test.labels, test.names), **task.slices(list(test.inputs))}
    return {name: rows for name, rows in found.items() if len(rows)}


def _share(predictions: NDArray[np.int64], labels: NDArray[np.int64], rows: Rows | None = None) -> Share:
    if rows is not None:
        predictions, labels = predictions[rows], labels[rows]
    return Share(len(labels), round(metrics.accuracy(predictions, labels), 6))


def _other_domain(predict: Predict, task: EvaluatedTask, limit: int | None) -> dict[str, Share]:
    """Return accuracy by domain and over all other domains; empty if there is no such data."""
    found = task.other_domain()
    if found is None:
        return {}
    labels, domains = np.array(found.labels[:limit]), np.array(found.domains[:limit])
    predictions = predict(found.texts[:limit])
    by_domain = {
        str(domain): _share(predictions, labels, np.flatnonzero(domains == domain))
        for domain in np.unique(domains)
    }
    return {**by_domain, "all": _share(predictions, labels)}


def _corrupted(predict: Predict, task: EvaluatedTask, test: HeldOut) -> dict[str, Share]:
    """Return accuracy by kind and severity, and on the same items uncorrupted ("clean")."""
    inputs, labels = test.inputs[:MAX_CORRUPTED], test.labels[:MAX_CORRUPTED]
    found = {"clean": _share(predict(inputs), labels)}
    for kind in task.corruptions:
        for severity in SEVERITIES:
            found[f"{kind} {severity}"] = _share(predict(task.corrupt(inputs, kind, severity)), labels)
    return found


def _routing(
    loaded: NetworkClassifier, test: HeldOut, slices: dict[str, Rows]
) -> dict[str, list[list[float]]]:
    if not isinstance(loaded, CountsExperts) or loaded.expert_counts() is None:
        return {}
    every = {"all": np.arange(len(test.labels)), **slices}
    token_ids = [item.features.ids for item in prepared(loaded, test.inputs)]
    shares = routing_shares(loaded.network, token_ids, every)
    return {name: each.round(4).tolist() for name, each in shares.items()}
