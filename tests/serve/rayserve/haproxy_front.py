"""Ray Serve's HAProxy with our changes before bare replicas; for the tests of HAProxy."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from fewshard_serve.rayserve.environment import free_ports

WRITE_CONFIG = """
import json, sys
folder, launcher, prefix, port, fallback, replicas, settings = json.loads(sys.argv[1])
from fewshard_serve.config import TlsConfig
from fewshard_serve.rayserve.environment import prepare_environment
from fewshard_serve.rayserve.haproxy import write_wrapper
from fewshard_serve.rayserve.haproxy_rules import FrontSettings
if "tls" in settings:
    settings["tls"] = TlsConfig(**settings["tls"])
settings = FrontSettings(**{"body_s": 1.0, "answer_s": 2.0, **settings})
prepare_environment(folder, settings)
write_wrapper(folder, settings, launcher)
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions
servers = [ServerConfig(name=f"r{at}", host="127.0.0.1", port=at) for at in replicas]
last = ServerConfig(name="fallback", host="127.0.0.1", port=fallback) if fallback else None
named = {"name": "http-m", "path_prefix": prefix, "app_name": "m"}
backend = BackendConfig(**named, servers=servers, fallback_server=last)
config = HAProxyConfig(
    http_options=HTTPOptions(host="127.0.0.1", port=port),
    socket_path=f"{folder}/admin.sock",
    server_state_base=folder,
    server_state_file=f"{folder}/state",
    is_head=True,
)
proxy = HAProxyApi(config, {"http-m": backend} if prefix else {}, config_file_path=f"{folder}/haproxy.cfg")
proxy._generate_config_file_internal()
"""
"""In a process of its own, since Ray reads its environment when it is imported."""


class Front:
    """HAProxy and replicas below `prefix`, which tell it of `room` where that is given.

    fallback: whether there is a proxy as Serve's own, which answers as a replica does.
    listens_at: the port in `settings`, where there is one.
    settings: fields of `FrontSettings`.
    """

    def __init__(
        self,
        folder,
        prefix="/m",
        room="",
        num_replicas=2,
        fallback=False,
        launcher=None,
        listens_at=None,
        **settings,
    ):
        self.folder, self.prefix, self.room = folder, prefix, room
        self.port, self.fallback_port, *self.ports = free_ports(2 + num_replicas)
        self.told = [
            str(folder),
            launcher or os.getpid(),
            prefix,
            self.port,
            self.fallback_port if fallback else 0,
            self.ports,
            settings,
        ]
        self.write()
        self.replicas = [self.replica(port) for port in self.ports]
        self.fallback = self.replica(self.fallback_port) if fallback else None
        self.proxy = self.spawn()
        self.listens_at = listens_at or self.port
        wait_for(self.listens_at)

    def write(self, prefix=None):
        """What Serve and the launcher write before HAProxy is started. Without a prefix Serve has nothing."""
        self.told[2] = self.prefix if prefix is None else prefix
        told = json.dumps(self.told)
        subprocess.run([sys.executable, "-c", WRITE_CONFIG, told], check=True, timeout=60)

    def replica(self, port):
        program = str(Path(__file__).with_name("bare_replica.py"))
        process = subprocess.Popen([sys.executable, program, str(port), self.room])
        wait_for(port)
        return process

    def revive(self):
        """Start the replicas that have ended, and wait until HAProxy has found all to be well."""
        for at, process in enumerate(self.replicas):
            if process.poll() is not None:
                self.replicas[at] = self.replica(self.ports[at])
        give_up_at = time.monotonic() + 20
        names = tuple(f"http-m,r{port}," for port in self.ports)
        while sum(
            row.startswith(names) and ",UP," in row for row in self.admin("show stat").splitlines()
        ) < len(names):
            assert time.monotonic() < give_up_at
            time.sleep(0.05)

    def spawn(self, *more):
        """Start HAProxy as Ray Serve does, and wait until it answers with the process' number."""
        command = [str(self.folder / "haproxy"), "-db", "-f", str(self.folder / "haproxy.cfg"), "-dR", *more]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        give_up_at = time.monotonic() + 20
        while f"\nPid: {process.pid}\n" not in self.admin("show info"):
            assert process.poll() is None, "HAProxy has not started"
            assert time.monotonic() < give_up_at
            time.sleep(0.02)
        return process

    def admin(self, command):
        """What the admin socket answers; "" if nobody does."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            try:
                connection.connect(str(self.folder / "admin.sock"))
                connection.sendall(f"{command}\n".encode())
                return b"".join(iter(lambda: connection.recv(65536), b"")).decode()
            except OSError:
                return ""

    def processes(self, program):
        """The ids of this front's processes of a program, the youngest last."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_text().split("\0")
                if program in " ".join(words[:4]) and any(str(self.folder) in word for word in words):
                    started = int((entry / "stat").read_text().rpartition(")")[2].split()[19])
                    found.append((started, int(entry.name)))
        return [pid for _, pid in sorted(found)]

    @property
    def haproxies(self):
        return self.processes("/haproxy -dS")

    def close(self):
        processes = [*self.replicas, self.proxy, *([self.fallback] if self.fallback else [])]
        for pid in (*self.processes("haproxy_keeper.py"), *self.haproxies):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in processes:
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
                writer.write(f"POST {self.prefix}/x HTTP/1.1\r\nHost: a\r\n".encode())
                writer.write(b"Content-Length: %d\r\n\r\n" % num_bytes)
                await asyncio.sleep(0.001)
                writer.write(bytes(num_bytes))
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                size = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
                await reader.readexactly(size)
                outcomes[head.split()[1]] += 1
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
