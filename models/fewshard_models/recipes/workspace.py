"""Folders of a recipe's phases, and the options of a run. Created by the `train` and `zoo` commands."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fewshard_models.errors import RecipeError
from fewshard_models.files import whole_file

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Workspace:
    """Folders and options of a run.

    run_dir: holds one resumable folder per phase.
    seed: seed of all random choices.
    init: directory with pretrained encoder weights.
    teacher: directory of a larger encoder to distil from.
    limit: use only the first rows of each training set, for a short trial.
    epochs: overrides the recipe's number of epochs.
    """

    run_dir: Path
    seed: int = 0
    init: Path | None = None
    teacher: Path | None = None
    limit: int | None = None
    epochs: int | None = None

    def phase(self, name: str, settings: Mapping[str, Any] | None = None) -> Path:
        """The phase's folder. `settings`: all else that determines its result, as JSON values.

        Raises RecipeError if the phase was begun with other settings; nothing is changed then.
        """
        folder = self.run_dir / name
        file = folder / "asked.json"
        options = {"seed": self.seed, "limit": self.limit, "epochs": self.epochs}
        asked = json.dumps(options | dict(settings or {}), sort_keys=True)
        if file.is_file() and (begun := file.read_text(encoding="utf-8")) != asked:
            difference = _difference(json.loads(begun), json.loads(asked))
            raise RecipeError(
                f"{folder} was begun with other settings: {difference}; "
                "use another --run-dir or the same options"
            )
        with whole_file(file) as partial:
            partial.write_text(asked, encoding="utf-8")
        return folder

    def limited(self, rows: list[Row]) -> list[Row]:
        return rows if self.limit is None else rows[: self.limit]

    def num_epochs(self, usual: int) -> int:
        return usual if self.epochs is None else self.epochs


def _difference(begun: dict[str, Any], asked: dict[str, Any]) -> str:
    """The first setting that differs, as text: `fit.epochs was 3, is 2`."""
    for key in sorted(begun.keys() | asked.keys()):
        old, new = begun.get(key), asked.get(key)
        if isinstance(old, dict) and isinstance(new, dict) and old != new:
            return f"{key}.{_difference(old, new)}"
        if old != new:
            return f"{key} was {old}, is {new}"
    return "no setting differs"


def digest(folder: Path) -> str:
    """A fingerprint of a checkpoint's configuration and weights, independent of the folder's location."""
    found = hashlib.sha256()
    for name in ("config.json", "model.safetensors"):
        with (folder / name).open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()[:16]
