"""Every check of `make clients`: real clients of other projects against a server of ours."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MADE = [
    Path(os.environ.get("FEWSHARD_CLIENTS", HERE.parents[1] / ".clients")) / each
    for each in ("clients", "mlserver")
]


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not all(map(Path.exists, MADE)), reason="`make clients` makes their environments")
def test_real_clients_are_served_right() -> None:
    done = subprocess.run([sys.executable, HERE / "run.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n| ") > 60, "no client was left out"
