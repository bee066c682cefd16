"""How the server's chaos counts, and a short run of it all."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def load():
    spec = importlib.util.spec_from_file_location("chaos_load", ROOT / "benchmarks/chaos_load.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_whatever_is_neither_answer_nor_refusal_is_lost(load):
    tally = load.Tally()
    for outcome in (200, 200, 429, 503, 500, "ReadError", "ReadError", "wrong label"):
        tally.count(outcome, 200, 0.1)
    assert (tally.sent, tally.answered, tally.refused) == (8, 2, 2)
    assert tally.lost == {"500": 1, "ReadError": 2, "wrong label": 1}


def test_a_bad_request_is_answered_by_the_right_error(load):
    tally = load.Tally()
    tally.count(400, 400, 0.1)
    tally.count(200, 400, 0.1)
    assert (tally.answered, tally.lost) == (1, {"200": 1})


def chaos(tmp_path, parts, seconds, port):
    out = tmp_path / "rows.json"
    command = [sys.executable, str(ROOT / "benchmarks/server_chaos.py"), "--parts", parts, "--out", str(out)]
    more = ["--seconds", str(seconds), "--port", str(port)]
    done = subprocess.run([*command, *more], env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {row["what"]: row for row in json.loads(out.read_text())}


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.timeout(600)
def test_a_killed_replica_an_update_and_a_drain_lose_nothing(tmp_path):
    rows = chaos(tmp_path, "kill,update,drain", 4, 8141)
    assert len(rows) == 5
    for row in rows.values():
        assert row["lost"] == 0
        assert row["answered"] > 50
    assert all(row["refused"] == 0 for what, row in rows.items() if "drain" not in what)
    assert "0 old replicas left" in rows["rolling update"]["remarks"]
