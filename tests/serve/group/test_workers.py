"""Who is stopped or silent is seen, and a stopped leader is ended. The victims are processes that sleep."""

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from fewshard_serve.group.handshake import Handshake
from fewshard_serve.group.transport import Link
from fewshard_serve.group.worker import WorkerConfig
from fewshard_serve.group.workers import Heartbeat, Peer, is_stopped, kill_if_stopped


@pytest.fixture
def sleeper():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


@pytest.fixture
def peer(sleeper):
    """A worker in that process, whose link nobody answers."""
    ours, theirs = socket.socketpair()
    hello = Handshake(1, "", sleeper.pid, socket.gethostname(), "", "cpu", "", "", "")
    with ours, theirs:
        ours_as_tcp = UnixLink(ours)
        yield Peer(hello, ours_as_tcp)


class UnixLink(Link):
    """A link over a socket pair, which has no TCP options."""

    def __init__(self, sock):
        self._sock, self._sending = sock, threading.Lock()
        self.last_heard_at = float("inf")


def reports_of(peer, timeout_s=60.0):
    found = queue.SimpleQueue()
    beat = Heartbeat(lambda: [peer], lambda who, why: found.put((who, why)), timeout_s)
    return found, beat


def test_a_stopped_process_is_seen_and_one_that_goes_on_is_not(sleeper):
    assert not is_stopped(sleeper.pid)
    os.kill(sleeper.pid, signal.SIGSTOP)
    os.waitpid(sleeper.pid, os.WUNTRACED)
    assert is_stopped(sleeper.pid)
    os.kill(sleeper.pid, signal.SIGCONT)
    os.waitpid(sleeper.pid, os.WCONTINUED)
    assert not is_stopped(sleeper.pid)
    sleeper.kill()
    sleeper.wait()
    assert not is_stopped(sleeper.pid)


def test_a_stopped_worker_is_reported_long_before_it_has_been_silent(peer, sleeper):
    found, beat = reports_of(peer, timeout_s=3600.0)
    os.kill(sleeper.pid, signal.SIGSTOP)
    assert found.get(timeout=20) == (peer, "it is stopped")
    beat.stop()


def test_a_worker_of_another_machine_is_judged_by_its_silence_alone(peer, sleeper):
    peer.hello = replace(peer.hello, host="elsewhere")
    peer.link.last_heard_at = 0.0
    os.kill(sleeper.pid, signal.SIGSTOP)
    found, beat = reports_of(peer, timeout_s=0.6)
    assert found.get(timeout=20) == (peer, "silent for 0.6 s")
    beat.stop()


def test_a_stopped_leader_is_ended(sleeper):
    until = threading.Event()
    watching = threading.Thread(target=kill_if_stopped, args=(sleeper.pid, until))
    watching.start()
    os.kill(sleeper.pid, signal.SIGSTOP)
    assert sleeper.wait(20) == -signal.SIGKILL
    watching.join(20)
    assert not watching.is_alive()


def test_a_leader_that_runs_is_left_alone(sleeper):
    until = threading.Event()
    watching = threading.Thread(target=kill_if_stopped, args=(sleeper.pid, until))
    watching.start()
    until.set()
    watching.join(20)
    assert sleeper.poll() is None


@pytest.mark.parametrize(
    ("pid", "host", "is_beside"),
    [(1, None, True), (os.getpid(), None, False), (1, "elsewhere", False), (0, None, False)],
    ids=["beside", "itself", "elsewhere", "nobody"],
)
def test_a_worker_watches_a_leader_that_is_another_process_of_its_machine(pid, host, is_beside):
    config = WorkerConfig(1, "127.0.0.1", 1, 1, "", "", "fp32", "cpu", 1.0, 1)
    config = replace(config, leader_pid=pid, leader_host=socket.gethostname() if host is None else host)
    assert config.is_beside_leader is is_beside
