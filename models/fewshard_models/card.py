"""`card.json`: description of a checkpoint, its measured accuracy, and inputs with known outputs.

Written by `fewshard evaluate` and the recipes. Read by `fewshard inspect` and by the server, which checks the
golden inputs before it accepts traffic.
"""

import json
import subprocess
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fewshard_models.errors import CheckpointError
from fewshard_models.files import whole_file

CARD_FILE = "card.json"


@dataclass(frozen=True, slots=True)
class Golden:
    """An input with its fp32 logits: a text, or a PNG image in base64."""

    input: str
    logits: list[float]


@dataclass(frozen=True, slots=True)
class Card:
    """The contents of `card.json`.

    accuracy, f1: measured values, f1 as the mean over classes; None if `extra["accuracy"]` says why not.
    num_examples: number of items they were measured on.
    macs: multiply-accumulates of one item as in `macs_input`; FLOPs are twice that.
    sparsity: share of weights that are zero.
    extra: further facts; for an MoE model `extra["routing"]` holds `routing_shares`.
    """

    name: str
    task: str
    kind: str
    dataset: str
    accuracy: float | None
    f1: float | None
    num_examples: int
    seed: int
    parameters_total: int
    parameters_active: int
    macs: int
    macs_input: str
    sparsity: float
    recipe: str
    commit: str
    golden: list[Golden]
    extra: dict[str, Any] = field(default_factory=dict)

    def save(self, directory: Path) -> None:
        with whole_file(directory / CARD_FILE) as partial:
            partial.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @property
    def accuracy_in_words(self) -> str:
        if self.accuracy is None:
            return f"not measured: {self.extra.get('accuracy', 'unknown')}"
        return f"{self.accuracy:.2%}"


def load_card(directory: Path) -> Card | None:
    """The card of a checkpoint, None if it has none. Raises CheckpointError if it cannot be read."""
    file = directory / CARD_FILE
    if not file.is_file():
        return None
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        fields["golden"] = [Golden(**golden) for golden in fields["golden"]]
        return Card(**fields)
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{file} cannot be read ({error}); delete it or make it anew") from error


def commit() -> str:
    """The git commit of the running code, for cards; "unknown" outside a checkout."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()
