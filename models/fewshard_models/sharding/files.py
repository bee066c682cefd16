"""Placement files: a placement and the name of the model it is for."""

import json
from pathlib import Path
from typing import Any

from fewshard_models.errors import PlacementError
from fewshard_models.files import whole_file
from fewshard_models.sharding.placement import Placement


def write_placement(file: Path, placement: Placement, model: str) -> None:
    """Write the file, whole or not at all."""
    with whole_file(file) as partial:
        partial.write_text(json.dumps({"model": model, **placement.to_json()}) + "\n", encoding="utf-8")


def read_placement(file: Path, model: str) -> Placement:
    """Raises PlacementError for a file that is unreadable, unsound or another model's."""
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PlacementError(f"{file} is no readable placement file: {error}") from error
    if not isinstance(fields, dict):
        raise PlacementError(f"{file} is no placement file: it holds no JSON object")
    require_model(fields, model, str(file))
    try:
        return Placement.from_json(fields)
    except PlacementError as error:
        raise PlacementError(f"{file}: {error}") from error


def require_model(fields: dict[str, Any], model: str, source: str) -> None:
    """Raises PlacementError unless the fields say that they are for this model."""
    named = fields.get("model")
    if named != model:
        raise PlacementError(
            f"{source} is a placement for {named!r}, not for {model!r}; plan one for this model"
        )
