"""Data sets for recipes and evaluation, read from the folder in `FEWSHARD_DATA`."""

import os
from pathlib import Path

from fewshard_models.errors import DataError


def data_dir() -> Path:
    """The data folder. Raises DataError if FEWSHARD_DATA is unset or is not a folder."""
    value = os.environ.get("FEWSHARD_DATA")
    if not value:
        raise DataError("set FEWSHARD_DATA to the folder that holds sst2/ and cifar10/ (see docs/data.md)")
    path = Path(value)
    if not path.is_dir():
        raise DataError(f"FEWSHARD_DATA is {value!r}, which is not a folder")
    return path
