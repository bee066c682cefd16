"""Ray Serve's HAProxy with our changes before two bare replicas: one dies; what HAProxy says by itself."""

import asyncio
import json
import socket
import time

import pytest

from fewshard_serve.rayserve.environment import has_haproxy
from fewshard_serve.rayserve.haproxy import stop_softly

pytestmark = pytest.mark.skipif(not has_haproxy(), reason="ray[serve] brings HAProxy on Linux only")


@pytest.fixture
def front(tmp_path, front_type):
    one = front_type(tmp_path)
    yield one
    one.close()


@pytest.mark.slow
@pytest.mark.parametrize("num_bytes", [200, 8_000, 200_000])
def test_a_replica_that_is_killed_costs_no_request(front, num_bytes):
    async def kill_under_load():
        asyncio.get_running_loop().call_later(1.0, front.replicas[0].kill)
        return await front.flood(num_bytes, 2.5)

    outcomes = asyncio.run(kill_under_load())
    assert front.replicas[0].wait(1) != 0
    assert set(outcomes) == {b"200"}
    assert outcomes[b"200"] > 100


def raw(port, request):
    """Everything that comes back until the connection is closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


HEAD = b"POST /m/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 9\r\n\r\n"


def test_what_haproxy_says_by_itself_is_our_json(front):
    assert raw(front.port, HEAD + b"123456789").startswith(b"HTTP/1.1 200")
    elsewhere = raw(front.port, HEAD.replace(b"/m/x", b"/elsewhere") + b"123456789")
    for process in front.replicas:
        process.kill()
        process.wait()
    routes = raw(front.port, b"GET /-/routes HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    answers = {
        (b"404", "not_found"): [routes],
        (b"503", "not_ready"): [elsewhere, raw(front.port, HEAD + b"123456789")],
        (b"408", "deadline_exceeded"): [raw(front.port, HEAD + b"1234")],
    }
    for (status, code), found in answers.items():
        for answer in found:
            head, _, body = answer.partition(b"\r\n\r\n")
            assert head.split()[1] == status
            assert b"content-type: application/json" in head
            assert json.loads(body)["code"] == code
            assert (b"retry-after: 1" in head) == (code == "not_ready")


def test_a_slow_upload_is_no_slow_answer(front):
    """Longer than a replica may take to answer, but never silent."""
    length = 600_000
    with socket.create_connection(("127.0.0.1", front.port), timeout=10) as connection:
        connection.sendall(HEAD.replace(b"Length: 9", b"Length: %d" % length) + bytes(length // 2))
        for _ in range(4):
            time.sleep(0.75)
            connection.sendall(bytes(length // 8))
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


def test_a_soft_stop_answers_what_is_inside_and_closes_the_port(front, tmp_path):
    with socket.create_connection(("127.0.0.1", front.port), timeout=10) as connection:
        connection.sendall(HEAD + b"1234")
        time.sleep(0.1)
        stop_softly(str(tmp_path))
        time.sleep(0.2)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", front.port), timeout=10)
        connection.sendall(b"56789")
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    assert front.proxy.wait(10) == 0
    assert all(process.poll() is None for process in front.replicas)
