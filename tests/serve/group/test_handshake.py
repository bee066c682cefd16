"""Who connects to a group's leader: little is read of a stranger, and strangers have few threads."""

import json
import socket
import struct
import threading
from contextlib import ExitStack

import pytest

from fewshard_serve.group.handshake import GUESTS_PER_SHARD, MAX_HELLO_BYTES, Listener, Wanted
from fewshard_serve.group.transport import Frame, send_frame

NUM_SHARDS = 2
HELLO = {"shard": 1, "secret": "s", "pid": 1, "host": "h", "address": "a", "device": "cpu"}
HELLO |= {"device_id": "", "fingerprint": "f", "problem": ""}


class Door:
    """A listener, and who was let in."""

    def __init__(self):
        self.came = threading.Semaphore(0)
        self.links = []
        wanted = Wanted(NUM_SHARDS, "s", "cpu", "f", "h")
        self.listener = Listener("127.0.0.1", wanted, self._on_guest, send_timeout_s=5)

    def _on_guest(self, hello, link, objection):
        assert not objection
        self.links.append(link)
        self.came.release()

    def connect(self):
        guest = socket.create_connection(("127.0.0.1", self.listener.port))
        guest.settimeout(20)
        return guest

    def lets_in(self):
        with self.connect() as guest:
            send_frame(guest, Frame("hello", HELLO))
            return self.came.acquire(timeout=20)


@pytest.fixture
def door():
    one = Door()
    yield one
    one.listener.close()
    for link in one.links:
        link._sock.close()


def is_turned_away(guest):
    """Whether the other end closes the connection."""
    try:
        return guest.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_worker_is_let_in(door):
    assert door.lets_in()


@pytest.mark.parametrize(("header_bytes", "body_bytes"), [(MAX_HELLO_BYTES + 1, 0), (10, 1), (0, 2**27)])
def test_a_stranger_cannot_make_the_leader_wait_for_a_large_frame(door, header_bytes, body_bytes):
    with door.connect() as guest:
        guest.sendall(struct.pack("!II", header_bytes, body_bytes))
        assert is_turned_away(guest)
    assert door.lets_in()


@pytest.mark.parametrize(
    "changed", [{"secret": 5}, {"secret": "ü"}, {"shard": "1"}, {"secret": "x"}, {"shard": 2}]
)
def test_a_hello_of_wrong_kinds_is_turned_away(door, changed):
    header = json.dumps({"kind": "hello", **HELLO, **changed}).encode()
    with door.connect() as guest:
        guest.sendall(struct.pack("!II", len(header), 0) + header)
        assert is_turned_away(guest)


def test_strangers_who_say_nothing_have_few_threads(door):
    with ExitStack() as stack:
        most = GUESTS_PER_SHARD * NUM_SHARDS
        for _ in range(most):
            stack.enter_context(door.connect())
        assert is_turned_away(stack.enter_context(door.connect()))
        greeting = [thread for thread in threading.enumerate() if thread.name == "group-greet"]
        assert len(greeting) == most
    for thread in greeting:
        thread.join(20)
    assert door.lets_in()


def test_a_listener_that_had_no_free_file_goes_on_listening(door, monkeypatch):
    """The accepting thread waits inside `accept`, so the first failure follows the next connection."""
    listener, failures = door.listener._listener, [OSError(24, "Too many open files")]

    class Once:
        def accept(self):
            if failures:
                raise failures.pop()
            return listener.accept()

        def __getattr__(self, name):
            return getattr(listener, name)

    monkeypatch.setattr(door.listener, "_listener", Once())
    assert door.lets_in()
    assert door.lets_in()
    assert not failures
