"""What a run leaves when it is killed: its reaper clears it, or the next run does; what lives stays."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from fewshard_serve.rayserve import run_folder
from fewshard_serve.rayserve.run_folder import clear_dead_runs, launcher_of, members

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")

LAUNCHER = """
import os, subprocess, sys
from fewshard_serve.rayserve import run_folder
from pathlib import Path
run_folder.ROOT = Path(sys.argv[1])
with run_folder.run_folder() as folder:
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    print(folder, child.pid, *(each.pid for each in __import__("psutil").Process().children()), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "ROOT", tmp_path)
    return tmp_path


class Run:
    """A launcher with a child in a session of its own."""

    def __init__(self, root):
        command = [sys.executable, "-c", LAUNCHER, str(root)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        folder, child, *children = self.process.stdout.readline().split()
        self.folder, self.child = Path(folder), int(child)
        (self.reaper,) = {int(pid) for pid in children} - {self.child}

    def kill(self):
        self.process.kill()
        self.process.wait()

    def close(self):
        for pid in (self.child, self.reaper):
            with psutil_gone():
                psutil.Process(pid).kill()
        self.kill()


@contextmanager
def psutil_gone():
    try:
        yield
    except psutil.NoSuchProcess:
        return


@pytest.fixture
def run(root):
    one = Run(root)
    yield one
    one.close()


def lives(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def await_end(*pids):
    give_up_at = time.monotonic() + 30
    while any(map(lives, pids)):
        assert time.monotonic() < give_up_at, "they still run"
        time.sleep(0.02)


def test_a_killed_launcher_leaves_neither_process_nor_folder(run):
    run.kill()
    await_end(run.child, run.reaper)
    assert not run.folder.exists()


def test_a_process_that_stays_stopped_is_killed(run):
    os.kill(run.child, signal.SIGSTOP)
    await_end(run.child)
    assert lives(run.reaper)
    assert run.folder.exists()


def test_what_nothing_replaces_is_left_stopped(run, monkeypatch):
    monkeypatch.setattr(run_folder, "_stopped", lambda: [run.child])
    monkeypatch.setattr(run_folder, "name_of", {run.child: "raylet"}.get)
    assert run_folder.end_stopped(str(run.folder), {run.child}) == set()
    assert lives(run.child)


def test_a_process_that_goes_on_is_left_alone(run):
    """Stopped at one look, it is not killed; nor is a stopped process of something else."""
    other = subprocess.Popen(["sleep", "600"])
    try:
        os.kill(run.child, signal.SIGSTOP)
        os.kill(other.pid, signal.SIGSTOP)
        while {psutil.Process(pid).status() for pid in (run.child, other.pid)} != {psutil.STATUS_STOPPED}:
            time.sleep(0.001)
        stopped = run_folder.end_stopped(str(run.folder), set())
        assert stopped == {run.child}
        assert run_folder.end_stopped(str(run.folder), {other.pid}) == stopped
        os.kill(run.child, signal.SIGCONT)
        assert run_folder.end_stopped(str(run.folder), stopped) == set()
        assert lives(run.child)
        assert lives(other.pid)
    finally:
        other.kill()
        other.wait()


def test_a_signal_to_the_group_does_not_end_the_reaper(run):
    os.kill(run.reaper, signal.SIGTERM)
    run.kill()
    await_end(run.child, run.reaper)
    assert not run.folder.exists()


def test_where_the_reaper_was_killed_too_the_next_run_clears(run, root):
    os.kill(run.reaper, signal.SIGKILL)
    await_end(run.reaper)
    run.kill()
    assert lives(run.child)
    assert members(str(run.folder)) == [run.child]
    clear_dead_runs()
    await_end(run.child)
    assert not run.folder.exists()


def test_a_run_that_lives_is_left_alone(run):
    clear_dead_runs()
    assert lives(run.child)
    assert run.folder.exists()
    assert launcher_of(run.child) == run.process.pid
    assert launcher_of(os.getpid()) is None


def test_a_clean_end_leaves_nothing(run):
    run.process.communicate("")
    assert run.process.returncode == 0
    await_end(run.child, run.reaper)
    assert not run.folder.exists()


def test_only_this_user_may_read_it(run):
    assert run.folder.stat().st_mode & 0o777 == 0o700


def test_folders_of_something_else_stay(root):
    (root / "fewshard-notes").mkdir()
    (root / "fewshard-notes" / "file").touch()
    clear_dead_runs()
    assert (root / "fewshard-notes" / "file").exists()


def test_a_folder_that_cannot_be_made_leaves_nothing_half_made(root, monkeypatch):
    def full(self, *_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="No space"), run_folder.run_folder():
        pass
    assert list(root.iterdir()) == []
