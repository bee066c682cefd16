"""Starts `fewshard serve`, names the processes of its tree and finds what it leaves; for `server_chaos`."""

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

START_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 60.0
COMMAND = (sys.executable, "-c", "import sys; from fewshard_serve.cli import main; sys.exit(main())")
FOLDERS = re.compile(r"/tmp/fewshard-[^/\s]+")
REPLICA = re.compile(r"ray::ServeReplica:(?:model-)?([^:]+):")
EARLY = re.compile(r"/(?:model-)?([^/\s]+)\.models\b")
ACTORS = {
    "ray::ServeController": "controller",
    "ray::ProxyActor": "proxy",
    "ray::HAProxyManager": "HAProxyManager",
    "ray::ShardWorker": "shard",
    "ray::IDLE": "idle worker",
}


@dataclass(frozen=True, slots=True)
class Traces:
    """What a server has on its machine while it runs.

    ports: on which it listens for requests.
    files: its work folders, and its files in /dev/shm.
    """

    ports: tuple[int, ...]
    files: frozenset[str]

    def open_ports(self) -> list[str]:
        return [f"port {port}" for port in self.ports if _is_listened_to(port)]

    def files_left(self) -> list[str]:
        return sorted(path for path in self.files if os.path.exists(path))


class Server:
    """`fewshard serve` in a session of its own, with a configuration file that can be changed.

    command: what runs `fewshard`.
    """

    def __init__(self, folder: Path, config: dict[str, Any], command: Sequence[str] = COMMAND) -> None:
        self.config, self._file, self._log = config, folder / "fewshard.yaml", folder / "server.log"
        self.url = f"http://127.0.0.1:{config['server']['port']}"
        self.write()
        self.started_at = time.monotonic()
        self._files: frozenset[str] = frozenset()
        self._known: set[psutil.Process] = set()
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "serve", str(self._file)], stdout=log, stderr=log, start_new_session=True
            )

    @property
    def said(self) -> str:
        return self._log.read_text(errors="replace")

    def write(self) -> None:
        self._file.write_text(yaml.safe_dump(self.config), encoding="utf-8")

    async def ready(self, timeout_s: float = START_TIMEOUT_S) -> float:
        """Return the seconds from the start until the server says that it serves. Raises `RuntimeError`."""
        await self.says("Fewshard serves", timeout_s)
        self.traces()
        return time.monotonic() - self.started_at

    async def says(self, words: str, timeout_s: float, since: int = 0) -> None:
        """Wait for words in the log after the first `since` characters. Raises `RuntimeError`."""
        is_said = await until(
            lambda: words in self.said[since:] or self.process.poll() is not None, timeout_s
        )
        if not is_said or words not in self.said[since:]:
            raise RuntimeError(f"the server has not said {words!r}:\n{self.said[-3000:]}")

    def processes(self) -> list[psutil.Process]:
        """Return all living processes of the server's tree, also those whose parents have died.

        They are in the launcher's session, or below a process that is or was one of them.
        """
        kin = {one: _kin(one) for one in psutil.process_iter()}
        living = {one: parent for one, (session, parent) in kin.items() if session}
        found = {one for one in living if kin[one][0] == self.process.pid or one in self._known}
        size = 0
        while size < len(found):
            size, pids = len(found), {one.pid for one in found}
            found |= {one for one, parent in living.items() if parent in pids}
        self._known |= found
        return sorted(found, key=lambda one: one.pid)

    def roles(self) -> dict[str, list[psutil.Process]]:
        """Return the processes by what they are."""
        found: dict[str, list[psutil.Process]] = defaultdict(list)
        for one in self.processes():
            with suppress(psutil.Error):
                found[self._role(one)].append(one)
        return dict(found)

    def _role(self, process: psutil.Process) -> str:
        if process.pid == self.process.pid:
            return "launcher"
        command = process.cmdline()
        parent = process.parent()
        return role(command, parent.cmdline() if parent else [])

    def left(self, traces: Traces) -> list[str]:
        """Return the processes and ports that are still there."""
        return [*sorted(self.roles()), *traces.open_ports()]

    def traces(self) -> Traces:
        """Return what the server has had on this machine, as far as it is known."""
        files: set[str] = set()
        for one in self.processes():
            with suppress(psutil.Error, OSError):
                files |= set(FOLDERS.findall(" ".join(one.cmdline())))
                maps = Path(f"/proc/{one.pid}/maps").read_text()
                files |= {
                    line.split()[-1] for line in maps.splitlines() if line[-1:] != ")" and "/dev/shm/" in line
                }
        self._files |= files  # what it is known to have had; a dead process no longer says so
        server = self.config["server"]
        return Traces(tuple(port for port in (server["port"], server["grpc_port"]) if port), self._files)

    def close(self) -> None:
        """End the server: by SIGTERM, then whatever is left of it by SIGKILL, and its work folders."""
        self.traces()
        for one in self.processes():
            with suppress(psutil.Error):
                one.resume()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        """End every process of the server at once, and remove its files."""
        self.traces()
        while left := self.processes():
            for one in left:
                with suppress(psutil.Error):
                    one.kill()
            psutil.wait_procs(left, 1.0)
            self.process.poll()  # otherwise a killed launcher stays as a zombie
        for path in self._files:
            shutil.rmtree(path, ignore_errors=True) if os.path.isdir(path) else Path(path).unlink(True)


@contextmanager
def running(folder: Path, config: dict[str, Any]) -> Iterator[Server]:
    """Run a server within the block, which begins once it is ready."""
    server = Server(folder, config)
    try:
        asyncio.run(server.ready())
        yield server
    finally:
        server.close()


async def until(condition: Callable[[], object], timeout_s: float, every_s: float = 0.1) -> bool:
    """Wait for a condition. Return whether it holds within the time."""
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > give_up_at:
            return False
        await asyncio.sleep(every_s)
    return True


def role(command: Sequence[str], parent: Sequence[str]) -> str:
    """Return what a process is, by its command line and its parent's."""
    title, program = " ".join(command), Path(command[0] if command else "").name
    if found := REPLICA.match(title):
        return "gateway" if found[1] == "gateway" else f"replica of {found[1]}"
    for start, name in ACTORS.items():
        if title.startswith(start):
            return name
    if program in ("gcs_server", "raylet", "haproxy"):
        return {"gcs_server": "GCS", "haproxy": "HAProxy"}.get(program, program)
    if any(part.endswith("haproxy_keeper.py") for part in command):
        return "HAProxy's keeper" if "haproxy_keeper.py" in " ".join(parent) else "HAProxy's front"
    if any(part.endswith("/haproxy") for part in command[1:]):
        return "HAProxy's wrapper"
    if any(part.endswith("/run_folder.py") for part in command):
        return "reaper"
    if "fewshard_serve.backends" in title:
        owner = REPLICA.match(" ".join(parent)) or EARLY.search(title)
        return f"models' process of {owner[1] if owner else 'nobody'}"
    return "agent" if program == "cat" or "agent" in title or "monitor" in title else f"other: {program}"


def _kin(process: psutil.Process) -> tuple[int, int]:
    """Return the process's session and its parent; zeros if it has ended."""
    try:
        is_dead = process.status() == psutil.STATUS_ZOMBIE
        return (0, 0) if is_dead else (os.getsid(process.pid), process.ppid())
    except (OSError, psutil.Error):
        return 0, 0


def _is_listened_to(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
