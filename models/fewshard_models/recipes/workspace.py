"""Where a recipe keeps its phases, and what it is asked to do; made by the `train` and `zoo` commands."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fewshard_models.errors import RecipeError

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Workspace:
    """`run_dir` holds one folder a phase, each resumable; `init` is a directory with pretrained encoder
    weights; `limit` keeps the first rows of each training set, for a short trial; `epochs` overrides the
    recipe's."""

    run_dir: Path
    seed: int = 0
    init: Path | None = None
    limit: int | None = None
    epochs: int | None = None

    def phase(self, name: str) -> Path:
        """The phase's folder. Raises RecipeError where it was begun with other settings."""
        folder = self.run_dir / name
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "asked.json"
        asked = json.dumps({"seed": self.seed, "limit": self.limit, "epochs": self.epochs})
        if file.is_file() and file.read_text() != asked:
            raise RecipeError(
                f"{folder} was begun with {file.read_text()}, now asked for {asked}; "
                "use another --run-dir or the same options"
            )
        file.write_text(asked)
        return folder

    def limited(self, rows: list[Row]) -> list[Row]:
        return rows if self.limit is None else rows[: self.limit]

    def num_epochs(self, usual: int) -> int:
        return usual if self.epochs is None else self.epochs


def commit() -> str:
    """The git commit of the code that runs, or "unknown" outside a checkout."""
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
