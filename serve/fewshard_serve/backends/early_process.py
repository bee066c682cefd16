"""A models' process that starts before Ray and waits for its replica, on the same machine.

It imports torch and transformers meanwhile, which takes as long as Ray's start. `launch` starts it, and
`process` takes it over through a Unix socket, once: a process that replaces it starts in the ordinary way.
"""

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path

import psutil

from fewshard_serve.backends import child_process
from fewshard_serve.backends.child_process import OWN_LOADER, Child

MAX_SOCKET_PATH = 100
"""Linux limits the path of a Unix socket to 107 characters."""
_CREDENTIALS = struct.Struct("3i")


def socket_path(folder: str, app: str) -> str:
    """Return where the process of this application waits; "" if it cannot wait there."""
    path = f"{folder}/{app}.models"
    return path if folder and len(path) <= MAX_SOCKET_PATH and sys.platform == "linux" else ""


@contextmanager
def early_process(path: str, environment: dict[str, str]) -> Iterator[None]:
    """Run the process within the block; with a `path` of "" none. It ends when this process does."""
    if not path:
        yield
        return
    code = f"from {__name__} import main; main()"
    command = [sys.executable, "-c", code, path]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=2, env=environment)
    # Whoever starts a process must wait for it, or its number is never free.
    waiting = threading.Thread(target=process.wait, name="fewshard-early-process", daemon=True)
    waiting.start()
    try:
        yield
    finally:
        process.kill()
        waiting.join()


class TakenOver:
    """The early process, as its replica sees it: with the methods of `Popen` that `process` calls."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._process = psutil.Process(pid)

    def kill(self) -> None:
        with suppress(psutil.NoSuchProcess):
            self._process.kill()

    def communicate(self) -> None:
        self._process.wait()

    def wait(self, timeout: float) -> int | None:
        """Wait for its end. Returns None: the exit code is its parent's. Raises subprocess.TimeoutExpired."""
        try:
            return self._process.wait(timeout)
        except psutil.TimeoutExpired as error:
            raise subprocess.TimeoutExpired("the models' process", timeout) from error


def take_over(path: str) -> tuple[TakenOver, Connection] | None:
    """Return the process that waits at `path`; None if none does."""
    if not path:
        return None
    with socket.socket(socket.AF_UNIX) as line:
        try:
            line.connect(path)
            return TakenOver(_peer(line)), Connection(line.detach())
        except (OSError, psutil.NoSuchProcess):
            return None


def _peer(line: socket.socket) -> int:
    """Return the number of the process at the other end."""
    size = _CREDENTIALS.size
    pid, _, _ = _CREDENTIALS.unpack(line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(pid)


def main() -> None:
    """Wait at the path in the first argument and serve whoever comes first. Called in the early process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in `child_process`
    child_process.hide_scipy()
    threading.Thread(target=child_process.end_with_stdin, daemon=True).start()
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(sys.argv[1])
        door.listen(1)
        child_process.find_loader(OWN_LOADER)
        line, _ = door.accept()
    Path(sys.argv[1]).unlink(missing_ok=True)
    threading.Thread(target=_end_with, args=[_peer(line)], daemon=True).start()
    child_process.answer_all(Connection(line.detach()), Child())


def _end_with(pid: int) -> None:
    """Exit when the replica has ended, even if a pass never ends."""
    with suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait()
    os._exit(1)
