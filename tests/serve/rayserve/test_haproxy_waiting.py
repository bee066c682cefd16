"""What HAProxy says while no replica answers: 503 with Retry-After, on every connection, and in time."""

import asyncio
import json
import socket
import time

import httpx
import pytest

from fewshard_serve.rayserve.environment import has_haproxy

pytestmark = pytest.mark.skipif(not has_haproxy(), reason="ray[serve] brings HAProxy on Linux only")

MODEL = "/v2/models/m"


def end(process):
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def waiting(tmp_path_factory, front_type):
    """No replica, and a fallback proxy that waits for one for 2.5 s. The model's deadline is 1 s."""
    folder = tmp_path_factory.mktemp("waiting")
    one = front_type(folder, MODEL, num_replicas=1, fallback=True, answer_s=20.0, deadlines_s=[["m", 1.0]])
    end(one.replicas[0])
    yield one
    one.close()


def post(front, path=MODEL, **headers):
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(f"http://127.0.0.1:{front.port}{path}", content=b"{}", headers=names, timeout=30)


def is_refused(answer):
    assert answer.json() == {"error": "no replica answers; come back soon", "code": "not_ready"}
    assert answer.headers["retry-after"] == "1"
    return answer.status_code == 503


def test_a_request_waits_for_a_replica_within_its_deadline(waiting):
    assert post(waiting, f"{MODEL}/stats", x_hold="2500").text == "ok"
    assert post(waiting, x_hold="300").text == "ok"


def test_the_models_deadline_holds_while_no_replica_is_up(waiting):
    assert is_refused(post(waiting, x_hold="2500"))


@pytest.mark.parametrize("path", [MODEL, f"{MODEL}/stats", f"{MODEL}/classify"])
def test_the_requests_own_deadline_does(waiting, path):
    assert is_refused(post(waiting, path, x_hold="2500", x_request_timeout_ms="300"))


@pytest.mark.parametrize("asked", ["0", "-5", "soon", "1e3", "100000000000000000000"])
def test_a_deadline_that_is_none_is_for_the_replica_to_refuse(waiting, asked):
    assert post(waiting, x_hold="300", x_request_timeout_ms=asked).text == "ok"


def test_what_serves_own_proxy_says_is_said_as_ours(waiting):
    end(waiting.fallback)
    try:
        assert is_refused(post(waiting))
    finally:
        waiting.fallback = waiting.replica(waiting.fallback_port)


class Client:
    """One connection, over which requests are sent one after the other."""

    def __init__(self, port):
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self._file = self._socket.makefile("rb")

    def send(self, num_bytes=2, **headers):
        lines = [f"POST {MODEL}/x HTTP/1.1", "Host: a", f"Content-Length: {num_bytes}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode() + bytes(num_bytes))

    def answer(self):
        """Its status and code; "" if the connection is closed without a byte."""
        status = self._file.readline().split()
        if not status:
            return "", ""
        lines = (line.lower().partition(b":") for line in iter(self._file.readline, b"\r\n"))
        headers = {name: value.strip() for name, _, value in lines}
        body = self._file.read(int(headers[b"content-length"]))
        if status[1] == b"200":
            return "200", body.decode()
        assert headers[b"retry-after"] == b"1"
        return status[1].decode(), json.loads(body)["code"]


@pytest.fixture(scope="module")
def mortal(tmp_path_factory, front_type):
    one = front_type(tmp_path_factory.mktemp("mortal"), MODEL, num_replicas=1, answer_s=20.0)
    yield one
    one.close()


@pytest.mark.parametrize("num_bytes", [2, 200_000, 900_000])
@pytest.mark.parametrize("num_before", [0, 1])
def test_a_request_whose_only_replica_dies_is_told(mortal, num_bytes, num_before):
    mortal.revive()
    client = Client(mortal.port)
    for _ in range(num_before):
        client.send(num_bytes)
        assert client.answer() == ("200", "ok")
    client.send(num_bytes, x_hold="20000")
    time.sleep(0.3)
    end(mortal.replicas[0])
    assert client.answer() == ("503", "not_ready")


def test_no_connection_is_closed_without_a_byte_when_the_only_replica_dies(mortal):
    async def kill_under_load():
        asyncio.get_running_loop().call_later(0.7, mortal.replicas[0].kill)
        return await mortal.flood(200, 2.0, num_clients=32)

    mortal.revive()
    outcomes = asyncio.run(kill_under_load())
    assert set(outcomes) == {b"200", b"503"}
