"""Failed starts are counted, and the next start waits."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from fewshard_serve.rayserve import autoscaling
from fewshard_serve.rayserve.autoscaling import MAX_WAIT_S, counted_start, wait_after


@pytest.fixture
def waits(monkeypatch):
    waited = []
    # Not `time.sleep` itself, by which other threads sleep as well.
    monkeypatch.setattr(autoscaling, "time", SimpleNamespace(sleep=waited.append, time=time.time))
    return waited


def gone_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_each_failure_doubles_the_wait():
    assert [wait_after(number) for number in (0, 1, 2, 3)] == [0.0, 2.0, 4.0, 8.0]
    assert wait_after(10) == wait_after(1000) == MAX_WAIT_S


def test_a_first_start_waits_for_nothing_and_leaves_nothing(tmp_path, waits):
    with counted_start(str(tmp_path), "model-a"):
        assert [mark.name for mark in tmp_path.iterdir()] == [f"model-a.{os.getpid()}.start"]
    assert waits == [0.0]
    assert list(tmp_path.iterdir()) == []


def test_starts_that_died_are_waited_for_until_one_succeeds(tmp_path, waits, caplog):
    for _ in range(2):
        (tmp_path / f"model-a.v1.{gone_pid()}.start").touch()
    with counted_start(str(tmp_path), "model-a.v1"):
        pass
    with counted_start(str(tmp_path), "model-a.v1"):
        pass
    assert waits == [4.0, 0.0]
    assert "model-a.v1: 2 replicas have died or failed" in caplog.text


def test_what_does_not_count(tmp_path, waits):
    (tmp_path / f"model-a.{os.getppid()}.start").touch()  # still starting
    (tmp_path / f"model-a.b.{gone_pid()}.start").touch()  # another model
    old = tmp_path / f"model-a.{gone_pid()}.start"
    old.touch()
    os.utime(old, (time.time() - 3600, time.time() - 3600))
    with counted_start(str(tmp_path), "model-a"):
        pass
    assert waits == [0.0]


def test_a_start_that_raises_is_a_failure(tmp_path, waits):
    with pytest.raises(ValueError, match="no model"), counted_start(str(tmp_path), "model-a"):
        raise ValueError("no model")
    assert len(list(tmp_path.iterdir())) == 1


def test_without_a_folder_nothing_is_counted(tmp_path, waits):
    for folder in ("", str(tmp_path / "gone")):
        with counted_start(folder, "model-a"):
            pass
    assert waits == []
