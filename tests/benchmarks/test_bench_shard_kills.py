"""What `shard_kills` draws, counts and keeps; and a short run of it."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fewshard_serve.rayserve.environment import free_ports

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def kills():
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("shard_kills")
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def load(kills):
    return importlib.import_module("shard_load")


def test_a_seed_draws_the_same_deeds_and_every_kind_of_them(kills):
    deeds = [kills.drawn(7, number, 2, 4) for number in range(200)]
    assert deeds == [kills.drawn(7, number, 2, 4) for number in range(200)]
    assert deeds != [kills.drawn(8, number, 2, 4) for number in range(200)]
    told = {", ".join(map(str, blows)) for blows in deeds}
    assert {"SIGKILL worker", "SIGSTOP worker", "SIGKILL leader", "SIGSTOP leader"} <= told
    assert {"SIGKILL worker, SIGSTOP worker", "SIGSTOP leader, SIGSTOP worker"} <= told
    assert any(blows[-1].after_s > 0 for blows in deeds)


def test_one_leader_is_left(kills):
    for number in range(200):
        roles = [blow.role for blow in kills.drawn(0, number, 2, 4)]
        assert roles.count(kills.LEADER) <= 1


def test_answers_after_the_deed_are_counted(load):
    answers = [
        load.Answer(1.0, 0.5, "503"),  # over before it
        load.Answer(9.9, 0.3, "ok"),  # under way when it came
        load.Answer(10.0, 1.2, "wrong"),
        load.Answer(11.5, 0.1, "ReadError"),
    ]
    found = load.figures(answers, since=10.0, rate=5.0, whole_s=3.21)
    assert (found["sent"], found["failed"], found["wrong"]) == (3, 1, 1)
    assert (found["slowest_s"], found["silent_s"], found["whole_s"]) == (1.2, 1.0, 3.2)


def test_the_longest_halt_is_read_from_the_leaders_words(load):
    line = "WARNING fewshard_serve.group.leader: shards [0, 1] go on after a halt of {} s\n"
    assert load.halted_s(line.format("0.041") + "shard 1 is lost: closed\n" + line.format("0.120")) == 0.12
    assert load.halted_s("shard 1 is lost: closed\n") is None


@pytest.mark.parametrize(
    ("figure", "value", "met"),
    [
        ("sent", 9, True),
        ("failed", 1, False),
        ("wrong", 1, False),
        ("slowest_s", 1.1, False),
        ("whole_s", None, False),
    ],
)
def test_a_deed_meets_its_target_if_nothing_is_amiss(kills, figure, value, met):
    found = {"sent": 9, "failed": 0, "wrong": 0, "slowest_s": 0.9, "whole_s": 4.0}
    assert kills.is_met({**found, figure: value}) is met


def test_no_answer_at_all_meets_no_target(kills, load):
    found = load.figures([], since=0.0, rate=5.0, whole_s=1.0)
    assert not kills.is_met(found)


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.timeout(900)
def test_a_few_kills_cost_no_answer_and_a_resumed_run_goes_on(tmp_path):
    """Not the target in time, which a quiet machine shows: that nothing fails and nothing is wrong."""
    port, _ = free_ports(2)
    command = [sys.executable, str(BENCHMARKS / "shard_kills.py"), "--resume", "--rate", "10", "--seed", "3"]
    command += ["--port", str(port), "--out", str(tmp_path), "--kills", ""]
    kept = []
    for kills in (2, 4):
        command[-1] = str(kills)
        done = subprocess.run(command, env=os.environ, capture_output=True, text=True, check=False)
        rows = json.loads((tmp_path / "shard-kills.json").read_text())["rows"]
        assert len(rows) == kills, done.stderr
        assert rows[: len(kept)] == kept
        kept = rows
    for row in kept:
        figures = row["figures"]
        assert (figures["failed"], figures["wrong"]) == (0, 0), row
        assert figures["sent"] > 0
        assert figures["whole_s"] is not None
