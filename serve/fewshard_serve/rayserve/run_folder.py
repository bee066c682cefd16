"""The folder of one run of the server, and what is left of runs that were killed.

`launch` makes the folder and starts this file as a process of its own: the reaper. When the launcher has
gone, however it ended, the reaper ends every process of the run and deletes the folder. Where both were
killed, the next run on this machine does so (`clear_dead_runs`). While the launcher lives, the reaper kills
what is stopped, as by SIGSTOP: dead processes are replaced, and those that hang with their sockets open are
missed by Ray only after half a minute. A launcher holds a lock on a file of its
folder, which the kernel takes away with the process, so that no other process of its number is taken for it.

The processes of a run are known by a variable in their environment, which all that Ray starts inherit. Only
Linux shows that, in /proc; elsewhere nothing is found.

It imports the standard library alone, so that the reaper is small and starts in milliseconds.
"""

import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

ROOT = Path("/tmp")
"""Not TMPDIR: the path of a Unix socket is limited to 107 characters, and Ray appends 70."""
PREFIX = "fewshard-"
LOCK = "launcher.pid"
MARK = "FEWSHARD_RUN_FOLDER"
"""The variable that each process of a run has in its environment, with the path of the folder."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL_S = 0.05
LOOK_S = 1.0
"""How often the reaper looks for stopped processes. It kills what is stopped at two looks in a row."""
VITAL = frozenset({"gcs_server", "raylet", "cat"})
"""Programs that the reaper leaves stopped: Ray's, which nothing replaces, and `cat`, which stands in for its
agents. The server answers on without them for a while, and would end with them."""
END_TIMEOUT_S = 5.0
"""A killed process ends at once, unless the kernel is busy for it (a dead disk, a stuck driver)."""


@contextmanager
def run_folder() -> Iterator[str]:
    """Make a folder that only this user may read, and clear it at the end. Raises `OSError`."""
    folder, lock = _make()
    with lock, _reaper(folder):
        os.environ[MARK] = folder
        try:
            yield folder
        finally:
            os.environ.pop(MARK, None)
            clear(folder)


def _make() -> tuple[str, TextIO]:
    """Return a folder, and the open file whose lock says that its launcher lives."""
    # It gets its name once it is locked, so that no other run takes it for a dead one's.
    hidden = Path(tempfile.mkdtemp(prefix=f".{PREFIX}", dir=ROOT))
    folder = hidden.with_name(hidden.name.removeprefix("."))
    try:
        lock = (hidden / LOCK).open("w", encoding="ascii")
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        hidden.rename(folder)
    except OSError:  # the disk is full
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    return str(folder), lock


@contextmanager
def _reaper(folder: str) -> Iterator[None]:
    """Run this file as a process that waits for this process' end, and that no signal to a group ends."""
    quiet = subprocess.DEVNULL
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # what is blocked here is so there, for ever
    try:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, folder],
            stdin=subprocess.PIPE,  # it closes when this process ends
            stdout=quiet,
            stderr=quiet,
            cwd="/",
            start_new_session=True,
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def launcher_of(pid: int) -> int | None:
    """Return the process id of the launcher whose run this process belongs to; None if there is none."""
    for pair in _environment(pid):
        name, _, folder = pair.partition(b"=")
        if name.decode(errors="replace") == MARK:
            with suppress(OSError, ValueError):
                return int(Path(os.fsdecode(folder), LOCK).read_text(encoding="ascii"))
    return None


def clear_dead_runs() -> None:
    """End and delete what is left of this user's runs whose launchers have ended."""
    for path in ROOT.glob(f"{PREFIX}*/{LOCK}"):
        with suppress(OSError):  # another run has cleared it
            if path.parent.lstat().st_uid == os.geteuid():
                _clear_if_dead(path)


def _clear_if_dead(path: Path) -> None:
    with path.open("r+", encoding="ascii") as lock, suppress(BlockingIOError):  # its launcher lives
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        clear(str(path.parent))


def clear(folder: str) -> None:
    """End all processes of a run but this one, at once, and delete its folder."""
    give_up_at = time.monotonic() + END_TIMEOUT_S
    while (left := members(folder)) and time.monotonic() < give_up_at:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_S)
    shutil.rmtree(folder, ignore_errors=True)


def members(folder: str) -> list[int]:
    """Return the ids of the processes of a run, without this one's."""
    mark = f"{MARK}={folder}".encode()
    pids = [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if pid != os.getpid() and mark in _environment(pid)]


def name_of(pid: int) -> str:
    """Return the name of a process' program; "" if it has ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _environment(pid: int) -> list[bytes]:
    """Return the variables with which a process was started; [] if it has ended or is another user's."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def end_stopped(folder: str, before: set[int]) -> set[int]:
    """Kill those of a run, but `VITAL` ones, that are stopped and were so `before`. Return all of them."""
    mark = f"{MARK}={folder}".encode()
    stopped = {pid for pid in _stopped() if mark in _environment(pid) and name_of(pid) not in VITAL}
    for pid in stopped & before:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return stopped


def _stopped() -> Iterator[int]:
    """Yield the processes of this machine that a signal has stopped; a debugger's are in another state."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError), open(f"/proc/{entry}/stat", "rb") as file:
                if file.read().rpartition(b")")[2].split()[0] == b"T":
                    yield int(entry)


def main() -> None:
    """Kill what stays stopped until standard input closes, then clear the folder of the first argument."""
    folder, stopped, pause_s = sys.argv[1], set[int](), LOOK_S
    while not select.select([sys.stdin], [], [], pause_s)[0]:
        began = time.process_time()
        stopped = end_stopped(folder, stopped)
        pause_s = max(LOOK_S, 100 * (time.process_time() - began))  # a machine may have many processes
    clear(folder)


if __name__ == "__main__":
    main()
