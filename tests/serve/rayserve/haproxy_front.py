"""Ray Serve's HAProxy with our changes before two bare replicas; for test_haproxy and test_refusing."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from fewshard_serve.rayserve.environment import free_ports

WRITE_CONFIG = """
import json, sys
folder, prefix, port, *replicas = json.loads(sys.argv[1])
from fewshard_serve.rayserve.environment import prepare_environment
from fewshard_serve.rayserve.haproxy import Waits
prepare_environment(folder, Waits(body_s=1.0, answer_s=2.0))
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions
servers = [ServerConfig(name=f"r{at}", host="127.0.0.1", port=at) for at in replicas]
backend = BackendConfig(name="http-m", path_prefix=prefix, app_name="m", servers=servers)
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
    """HAProxy and two replicas below `prefix`, which tell it of `room` where that is given."""

    def __init__(self, folder, prefix="/m", room=""):
        self.port, *ports = free_ports(3)
        told = json.dumps([str(folder), prefix, self.port, *ports])
        subprocess.run([sys.executable, "-c", WRITE_CONFIG, told], check=True, timeout=60)
        program = str(Path(__file__).with_name("bare_replica.py"))
        self.replicas = [subprocess.Popen([sys.executable, program, str(port), room]) for port in ports]
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
