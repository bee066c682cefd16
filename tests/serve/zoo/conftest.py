"""Where the rows are that the zoo's tests send; its server is in the folder above."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    value = os.environ.get("FEWSHARD_DATA")
    if not value:
        pytest.skip("FEWSHARD_DATA is not set, so there are no SST-2 and CIFAR-10 rows to send")
    return Path(value)
