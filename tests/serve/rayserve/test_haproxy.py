"""Ray Serve's HAProxy with our changes before two bare replicas: one dies; what HAProxy says by itself."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from fewshard_serve.rayserve.environment import free_ports, has_haproxy
from fewshard_serve.rayserve.haproxy import stop_softly

pytestmark = pytest.mark.skipif(not has_haproxy(), reason="ray[serve] brings HAProxy on Linux only")

WRITE_CONFIG = """
import json, sys
folder, port, *replicas = json.loads(sys.argv[1])
from fewshard_serve.rayserve.environment import prepare_environment
from fewshard_serve.rayserve.haproxy import Waits
prepare_environment(folder, Waits(body_s=1.0, answer_s=2.0))
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions
servers = [ServerConfig(name=f"r{at}", host="127.0.0.1", port=at) for at in replicas]
backend = BackendConfig(name="http-m", path_prefix="/m", app_name="m", servers=servers)
config = HAProxyConfig(
    http_options=HTTPOptions(host="127.0.0.1", port=port),
    socket_path=f"{folder}/admin.sock",
    server_state_base=folder,
    server_state_file=f"{folder}/state",
    is_head=True,
)
proxy = HAProxyApi(config, {"http-m": backend}, config_file_path=f"{folder}/haproxy.cfg")
proxy._generate_config_file_internal()
"""
"""In a process of its own, since Ray reads its environment when it is imported."""


class Front:
    """HAProxy and its replicas."""

    def __init__(self, folder):
        self.port, *ports = free_ports(3)
        told = json.dumps([str(folder), self.port, *ports])
        subprocess.run([sys.executable, "-c", WRITE_CONFIG, told], check=True, timeout=60)
        program = str(Path(__file__).with_name("bare_replica.py"))
        self.replicas = [subprocess.Popen([sys.executable, program, str(port)]) for port in ports]
        for port in ports:
            wait_for(port)
        command = [str(folder / "haproxy"), "-db", "-f", str(folder / "haproxy.cfg")]
        self.proxy = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        wait_for(self.port)

    def close(self):
        for process in (*self.replicas, self.proxy):
            process.kill()
            process.wait()

    async def flood(self, num_bytes, seconds, num_clients=16):
        """What clients on lasting connections get; the body comes in a packet of its own, as from most."""
        stop_at, outcomes = time.monotonic() + seconds, Counter()
        await asyncio.gather(*(self._client(num_bytes, stop_at, outcomes) for _ in range(num_clients)))
        return outcomes

    async def _client(self, num_bytes, stop_at, outcomes):
        writer = None
        while time.monotonic() < stop_at:
            try:
                if writer is None:
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.write(b"POST /m/x HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % num_bytes)
                await asyncio.sleep(0.001)
                writer.write(bytes(num_bytes))
                outcomes[(await reader.readuntil(b"\r\n\r\n")).split()[1]] += 1
                assert await reader.readexactly(2) == b"ok"
            except (OSError, EOFError) as error:
                outcomes[type(error).__name__] += 1
                writer = None


def wait_for(port):
    give_up_at = time.monotonic() + 20
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < give_up_at
        time.sleep(0.05)


@pytest.fixture
def front(tmp_path):
    one = Front(tmp_path)
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
    answers = {
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
