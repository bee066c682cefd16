"""The overload benchmark runs, and what it refuses and answers adds up."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.server
@pytest.mark.slow
def test_a_short_run_gives_every_figure(tmp_path):
    out = tmp_path / "overload.json"
    command = [sys.executable, ROOT / "benchmarks/overload.py", "--rounds", "1", "--seconds", "4"]
    done = subprocess.run([*command, "--out", out], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(out.read_text())["rounds"]
    assert found["sent_rps"] > 1.2 * found["peak_rps"]
    assert found["refused"] > 0
    assert 0 < found["goodput"] < 1.5
    assert found["refused_p50_ms"] <= found["refused_p99_ms"]
    assert set(found["errors"]) == {"HTTP 429"}
