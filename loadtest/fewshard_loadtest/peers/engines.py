"""The checkpoint on every engine, without a server: exported and quantised once, then tried in each format.

What `rounds` tunes a peer with is the fastest format of its engine that answers as well as fp32 does.
"""

import csv
import hashlib
import json
import os
import random
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path

from fewshard_loadtest.payloads import own_texts
from fewshard_loadtest.peers.checkpoint import LEAST_AGREEING, Expected, run_app
from fewshard_loadtest.peers.environments import pins
from fewshard_loadtest.peers.launch import TORCH_DTYPES
from fewshard_loadtest.peers.settings import CUT, TUNED, Setting

ENVIRONMENT = "engines"
FORMATS = {
    "torch": ("fp32", "bf16", "fp16"),
    "openvino": ("fp32", "bf16", "int8"),
    "onnxruntime": ("fp32", "int8-dynamic", "int8-static"),
}
CLASS_POINTS = 0.3
"""Accuracies that differ by no more percentage points than this are of one class."""
_NUM_CALIBRATION, _MIN_WORDS, _SEED = 300, 10, 0
_DONE = "done"


@dataclass(frozen=True, slots=True)
class Trial:
    """An engine in one format, on one thread at batches of 32.

    per_s: texts a second.
    accuracy: share of right labels; None if the texts' true labels are unknown or the head is random.
    agreeing: share of labels equal to those of fp32.
    error: why it cannot run here.
    """

    engine: str
    dtype: str
    per_s: float = 0.0
    accuracy: float | None = None
    agreeing: float = 0.0
    error: str = ""


def prepared(bin_: Path, model: Path, folder: Path) -> Path:
    """The folder of a checkpoint's exports, made if neither it nor the pins have been met before.

    bin_: programs of the environment `engines`. Raises BenchmarkError if the export fails.
    """
    texts = calibration_texts()
    out = folder / "models" / _key(model, texts)
    if not (out / _DONE).is_file():
        print(f"exporting and quantising {model.name} into {out}", file=sys.stderr, flush=True)
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        run_app("quantise.py", [str(model), str(out)], texts, bin_)
        (out / _DONE).touch()
    return out


def calibration_texts() -> list[str]:
    """Random sentences of SST-2's training set if FEWSHARD_DATA is set, else our own.

    They have ten words or more, as those that are sent: from its many short phrases, ranges come out too
    narrow.
    """
    data = os.environ.get("FEWSHARD_DATA")
    if not data:
        return [*own_texts().items]
    with (Path(data) / "sst2/train.tsv").open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        sentences = [row["sentence"].strip() for row in rows if len(row["sentence"].split()) >= _MIN_WORDS]
    return random.Random(_SEED).sample(sentences, _NUM_CALIBRATION)


def _key(model: Path, texts: Sequence[str]) -> str:
    digest = hashlib.sha256(json.dumps([*texts, *pins(ENVIRONMENT)]).encode())
    for program in ("quantise.py", "engine.py"):
        digest.update((files("fewshard_loadtest.peers") / "apps" / program).read_bytes())
    for path in sorted(model.iterdir()):
        if path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def tried(
    engine: str,
    bin_: Path | None,
    model: Path,
    exports: Path | None,
    expected: Sequence[Expected],
    threads: int,
) -> list[Trial]:
    """Every format of one engine, measured in turn in one process."""
    settings = [Setting(TUNED, dtype, threads=threads, cut=CUT) for dtype in FORMATS[engine]]
    told = [
        {
            **asdict(setting),
            "model": str(model),
            "engine": engine,
            "engines": str(exports),
            "torch_dtype": TORCH_DTYPES.get(str(setting.dtype)),
        }
        for setting in settings
    ]
    given = {"settings": told, "texts": [one.text for one in expected]}
    answers = json.loads(run_app("engine_trial.py", [], given, bin_))
    trials = [Trial(engine, str(setting.dtype)) for setting in settings]
    return [_trial(trial, answer, expected) for trial, answer in zip(trials, answers, strict=True)]


def _trial(trial: Trial, answer: dict[str, object], expected: Sequence[Expected]) -> Trial:
    if "error" in answer:
        return replace(trial, error=str(answer["error"]))
    labels = answer["labels"]
    assert isinstance(labels, list)
    same = sum(one.label == label for one, label in zip(expected, labels, strict=True))
    return replace(
        trial,
        per_s=float(str(answer["per_s"])),
        accuracy=accuracy(expected, labels),
        agreeing=same / len(expected),
    )


def accuracy(expected: Sequence[Expected], labels: Sequence[str]) -> float | None:
    """The share of labels that are true; None if truth is unknown."""
    if not expected or any(one.truth is None for one in expected):
        return None
    return sum(one.truth == label for one, label in zip(expected, labels, strict=True)) / len(expected)


def is_in_class(accuracy_: float | None, of_fp32: float | None) -> bool:
    """Whether an accuracy is that of fp32 within CLASS_POINTS; unknown ones are."""
    if accuracy_ is None or of_fp32 is None:
        return True
    return accuracy_ >= of_fp32 - CLASS_POINTS / 100 - 1e-9


def fastest(trials: Iterable[Trial], of_fp32: float | None) -> Trial | None:
    """The fastest trial within the accuracy class that agrees with fp32; None if there is none."""
    fit = [
        trial
        for trial in trials
        if not trial.error and trial.agreeing >= LEAST_AGREEING and is_in_class(trial.accuracy, of_fp32)
    ]
    return max(fit, key=lambda trial: trial.per_s, default=None)
