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
from fewshard_loadtest.peers.catalogue import clean_environment

LEAST_MARGIN = 1e-3
"""Logits closer than this may swap with the order of a sum."""
LEAST_AGREEING = 0.9
_APPS = Path(str(files("fewshard_loadtest.peers"))) / "apps"


@dataclass(frozen=True, slots=True)
class Expected:
    """A text, its fp32 label, and the margin between its two best logits."""

    text: str
    label: str
    margin: float


def make(directory: Path, encoder: Path | None, texts: Sequence[str]) -> None:
    """A classifier: a BERT encoder with a head of a fixed seed, or random weights of MiniLM's size."""
    options = [] if encoder is None else ["--encoder", str(encoder)]
    run_app("checkpoint.py", ["make", str(directory), *options], texts)


def expected_labels(directory: Path, texts: Sequence[str]) -> list[Expected]:
    """Labels from transformers in fp32, one text at a time. Raises BenchmarkError if loading fails."""
    answers = json.loads(run_app("checkpoint.py", ["labels", str(directory)], texts))
    return [Expected(text, **answer) for text, answer in zip(texts, answers, strict=True)]


def run_app(name: str, arguments: Sequence[str], texts: Sequence[str]) -> str:
    """Run one of our scripts in this environment with the texts on stdin; returns its stdout."""
    command = [sys.executable, str(_APPS / name), *arguments]
    done = subprocess.run(
        command,
        input=json.dumps(list(texts)),
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BenchmarkError(f"{name} {arguments[0]}: {done.stderr.strip()[-400:]}")
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
    answer = run_app("model_cost.py", [str(directory), dtype, f"{seconds:g}", *sizes], texts)
    return {int(size): float(cost) for size, cost in json.loads(answer).items()}
