"""The checkpoint for all servers, and its fp32 labels, with which `session` compares their answers.

torch and transformers run in a separate process, since the load generator does not depend on them.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from fewshard_loadtest.errors import BenchmarkError
from fewshard_loadtest.peers.launch import PASSIVE, clean_environment

LEAST_MARGIN = 1e-3
"""Logits closer than this may swap with the order of a sum."""
LEAST_AGREEING = 0.9
_APPS = Path(str(files("fewshard_loadtest.peers"))) / "apps"


@dataclass(frozen=True, slots=True)
class Expected:
    """A text, its fp32 label, the margin between its two best logits, and its true label if that is known."""

    text: str
    label: str
    margin: float
    truth: str | None = None


def make(directory: Path, encoder: Path | None, texts: Sequence[str]) -> None:
    """A classifier: a BERT encoder with a head of a fixed seed, or random weights of MiniLM's size."""
    options = [] if encoder is None else ["--encoder", str(encoder)]
    run_app("checkpoint.py", ["make", str(directory), *options], list(texts))


def expected_labels(directory: Path, texts: Sequence[str], truths: Sequence[str] = ()) -> list[Expected]:
    """Labels from transformers in fp32, one text at a time. Raises BenchmarkError if loading fails.

    truths: the true labels; empty if they are unknown.
    """
    answers = json.loads(run_app("checkpoint.py", ["labels", str(directory)], list(texts)))
    known: Sequence[str | None] = truths or [None] * len(texts)
    return [
        Expected(text, **answer, truth=truth)
        for text, answer, truth in zip(texts, answers, known, strict=True)
    ]


def run_app(name: str, arguments: Sequence[str], given: object, bin_: Path | None = None) -> str:
    """Run one of our scripts with `given` as JSON on stdin; returns its stdout.

    bin_: programs of a peer's environment; None for this one. Raises BenchmarkError with the script's words.
    """
    python = sys.executable if bin_ is None else str(bin_ / "python")
    done = subprocess.run(
        [python, str(_APPS / name), *arguments],
        input=json.dumps(given),
        env={**clean_environment(is_peer=bin_ is not None), **PASSIVE},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BenchmarkError(f"{' '.join([name, *arguments[:1]])}: {done.stderr.strip()[-400:]}")
    return done.stdout


def check_labels(expected: Sequence[Expected], labels: Sequence[str], is_exact: bool) -> float:
    """The share of labels that match. Raises BenchmarkError if too few do.

    `is_exact`: all must match, except for texts whose two best logits are nearly equal.
    """
    right = [one.label == label for one, label in zip(expected, labels, strict=True)]
    wrong = [one.text for one, good in zip(expected, right, strict=True) if not good]
    if is_exact:
        wrong = [one.text for one in expected if one.text in wrong and one.margin >= LEAST_MARGIN]
    share = sum(right) / len(right)
    if share < LEAST_AGREEING or (is_exact and wrong):
        raise BenchmarkError(f"answers wrongly: {len(wrong)} of {len(right)} labels, first for {wrong[0]!r}")
    return share


def model_cost(
    directory: Path, dtype: str, seconds: float, sizes: Sequence[str], texts: Sequence[str]
) -> dict[int, float]:
    """CPU milliseconds per text of tokeniser and model alone, by batch size; each runs for `seconds`."""
    answer = run_app("model_cost.py", [str(directory), dtype, f"{seconds:g}", *sizes], list(texts))
    return {int(size): float(cost) for size, cost in json.loads(answer).items()}
