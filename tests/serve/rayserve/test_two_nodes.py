"""A group over two Ray nodes: it spreads, answers rightly, and outlives a worker and a whole node."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.server, pytest.mark.slow]

SCRIPT = Path(__file__).with_name("two_nodes.py")


@pytest.fixture(scope="module")
def found():
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_shards_are_on_both_nodes(found):
    assert found["nodes"] == 2
    assert found["start"]["size"] == 3
    assert found["shards away"]


@pytest.mark.parametrize("moment", ["start", "worker killed", "worker back", "node lost", "node replaced"])
def test_answers_are_those_of_the_whole_model(found, moment):
    assert found[moment]["error"] < 1e-4
    assert found[moment]["problem"] == ""


def test_a_lost_node_is_made_good_on_another(found):
    assert found["worker killed"]["size"] == 2
    assert found["worker back"]["size"] == 3
    assert found["node lost"]["size"] < 3
    assert found["node replaced"]["size"] == 3
    assert found["node replaced"]["reforms"] >= 4
