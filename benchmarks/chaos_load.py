"""Starts a server, sends load, and counts outcomes; for `server_chaos` and `overload`."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

START_TIMEOUT_S = 240.0
CALL_TIMEOUT_S = 40.0
COMMAND = "import sys; from fewshard_serve.cli import main; sys.exit(main())"
REFUSALS = frozenset({429, 503})


@dataclass
class Tally:
    """Requests by outcome. `lost`: no answer, or an unexpected one."""

    sent: int = 0
    answered: int = 0
    refused: int = 0
    worst_s: float = 0.0
    lost: dict[str, int] = field(default_factory=dict)

    def count(self, outcome: int | str, wanted: int, seconds: float) -> None:
        self.sent += 1
        self.worst_s = max(self.worst_s, seconds)
        if outcome == wanted:
            self.answered += 1
        elif outcome in REFUSALS:
            self.refused += 1
        else:
            self.lost[str(outcome)] = self.lost.get(str(outcome), 0) + 1


class Server:
    """`fewshard serve` in its own session, with a configuration file that can be changed."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.config, self._file, self._log = config, folder / "fewshard.yaml", folder / "server.log"
        self.url = f"http://127.0.0.1:{config['server']['port']}"
        self.write()
        command = [sys.executable, "-c", COMMAND, "serve", str(self._file)]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)

    @property
    def said(self) -> str:
        return self._log.read_text(errors="replace")

    def write(self) -> None:
        self._file.write_text(yaml.safe_dump(self.config), encoding="utf-8")

    def wait_for(self, words: str, timeout_s: float = START_TIMEOUT_S) -> None:
        give_up_at = time.monotonic() + timeout_s
        while words not in self.said:
            if self.process.poll() is not None or time.monotonic() > give_up_at:
                raise RuntimeError(f"the server has not said {words!r}:\n{self.said[-3000:]}")
            time.sleep(0.2)

    def replicas(self, model: str) -> list[psutil.Process]:
        """Return the processes of a model that has its own host, including loading ones."""
        return [one for one in self.processes() if f"ServeReplica:model-{model}:" in _title(one)]

    def num_ready(self, model: str) -> int:
        """Return the number of replicas that answer."""
        answer = httpx.get(f"{self.url}/v2/models/{model}/stats", timeout=CALL_TIMEOUT_S)
        return int(answer.json()["replicas"]) if answer.status_code == httpx.codes.OK else 0

    def processes(self) -> list[psutil.Process]:
        return [one for one in psutil.process_iter() if _session(one) == self.process.pid]

    def memory_mb(self) -> float:
        """Return the private memory of the server's processes, without shared pages."""
        return sum(_private_mb(one) for one in self.processes())

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
        for one in self.processes():
            one.kill()


@contextmanager
def running(folder: Path, config: dict[str, Any]) -> Iterator[Server]:
    server = Server(folder, config)
    try:
        server.wait_for("Fewshard serves")
        yield server
    finally:
        server.close()


class Load:
    """Requests for one model: a sentence, `num_items` times, in a body padded with spaces to `num_bytes`.

    address: the client address, by which the server distinguishes callers.
    """

    def __init__(
        self, server: Server, model: str, num_bytes: int = 200, address: str = "127.0.0.1", num_items: int = 1
    ) -> None:
        self.tally = Tally()
        self._address = address
        self._url = f"{server.url}/v2/models/{model}/classify"
        body = json.dumps({"inputs": ["a gripping and often funny film"] * num_items})
        self._body = body.ljust(num_bytes).encode()
        self._best: str | None = None

    async def closed(self, num_users: int, seconds: float) -> float:
        """Closed loop: every user sends again once answered. Return good answers a second."""
        stop_at, before = time.monotonic() + seconds, self.tally.answered
        async with client(self._address) as session:

            async def user() -> None:
                while time.monotonic() < stop_at:
                    await self._one(session)

            await asyncio.gather(*(user() for _ in range(num_users)))
        return (self.tally.answered - before) / seconds

    async def steady(self, rate: float, stop: asyncio.Event) -> None:
        """Open loop: send `rate` requests a second until `stop`, independent of the answers."""
        tasks, due_at = [], time.monotonic()
        async with client(self._address) as session:
            while not stop.is_set():
                tasks.append(asyncio.create_task(self._one(session)))
                due_at += 1 / rate
                await asyncio.sleep(max(0.0, due_at - time.monotonic()))
            await asyncio.gather(*tasks)

    async def _one(self, session: httpx.AsyncClient) -> None:
        started_at = time.monotonic()
        try:
            answer = await session.post(self._url, content=self._body)
            outcome: int | str = answer.status_code
            if answer.status_code == httpx.codes.OK:
                outcome = self._checked(answer.json()["predictions"][0][0]["label"])
        except httpx.HTTPError as error:
            outcome = type(error).__name__
        self.tally.count(outcome, httpx.codes.OK, time.monotonic() - started_at)

    def _checked(self, best: str) -> int | str:
        self._best = self._best or best
        return int(httpx.codes.OK) if best == self._best else "wrong label"


def client(address: str = "127.0.0.1") -> httpx.AsyncClient:
    """Return a client that never retries."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
    transport = httpx.AsyncHTTPTransport(limits=limits, local_address=address)
    return httpx.AsyncClient(transport=transport, timeout=CALL_TIMEOUT_S)


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _session(process: psutil.Process) -> int:
    try:
        return os.getsid(process.pid) if process.status() != psutil.STATUS_ZOMBIE else 0
    except (OSError, psutil.Error):
        return 0


def _private_mb(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().uss) / 1e6
    except psutil.Error:
        return 0.0
