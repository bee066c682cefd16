"""Child processes that are started, told their secret in private, and started again."""

import os
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fewshard_serve.group import launcher as launcher_module
from fewshard_serve.group.handshake import Handshake
from fewshard_serve.group.launcher import ProcessLauncher
from fewshard_serve.group.transport import receive_frame
from fewshard_serve.group.worker import WorkerConfig

SECRET = "a-secret-of-this-test"


@pytest.fixture
def leader():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(150)
        yield listener


@pytest.fixture
def launcher():
    made = ProcessLauncher()
    yield made
    made.stop()


def invitation(leader, directory):
    port = leader.getsockname()[1]
    return WorkerConfig(1, "127.0.0.1", port, 1, SECRET, str(directory), "fp32", "cpu", 1.0, 1)


def hello(leader):
    guest, _ = leader.accept()
    guest.settimeout(150)
    frame = receive_frame(guest)
    guest.close()
    return Handshake(**frame.fields)


def test_a_worker_says_who_it_is_and_is_followed_by_another(leader, launcher, moe_checkpoint, monkeypatch):
    monkeypatch.setattr(launcher_module, "START_PAUSE_S", 0.0)
    launcher.start([invitation(leader, moe_checkpoint())])
    command = Path(f"/proc/{launcher.pids[1]}/cmdline").read_text()
    first = hello(leader)
    assert (first.shard, first.secret, first.pid, first.device, first.problem) == (
        1,
        SECRET,
        launcher.pids[1],
        "cpu",
        "",
    )
    assert SECRET not in command, "everybody on a machine sees the arguments of its processes"
    wait_until_ended(first.pid)
    while launcher.pids[1] == first.pid:  # its threads may end after it
        launcher.tend()
    assert hello(leader).pid == launcher.pids[1]


def test_a_stopped_worker_can_be_killed_and_a_new_one_not_by_its_name(leader, launcher, moe_checkpoint):
    launcher.start([invitation(leader, moe_checkpoint())])
    pid = launcher.pids[1]
    launcher.kill(1, "here", pid + 1)
    os.kill(pid, signal.SIGSTOP)
    assert Path(f"/proc/{pid}").exists()
    launcher.kill(1, "here", pid)
    wait_until_ended(pid)


def test_a_worker_without_a_checkpoint_says_so(leader, launcher, tmp_path):
    launcher.start([replace(invitation(leader, tmp_path), dtype="fp32")])
    assert "no checkpoint at" in hello(leader).problem


def wait_until_ended(pid, timeout_s=60):
    give_up_at = time.monotonic() + timeout_s
    while time.monotonic() < give_up_at:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except OSError:
            return
        time.sleep(0.02)
    raise AssertionError(f"{pid} has not ended")
