"""Gives freed memory back to the system, in each process that lives as long as the server.

glibc keeps what is freed between blocks in use, and all that other threads' arenas held: a process that has
once unpacked or decoded much would stay as large for ever. `rayserve` and `backends` start it.
"""

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

LOOK_S = 10.0
GROWTH = 1.05
"""A process is trimmed while it is so many times as large as it was at its smallest."""

_STATM = Path("/proc/self/statm")


class Trimmer:
    """Trims this process while it is larger than it has been.

    num_calls: returns how many calls were answered so far. While they come memory is kept, since the next one
        needs as much again; without it memory is given back at any time.
    resident, trim: the memory of the process in bytes, and what gives it back.
    """

    def __init__(
        self,
        num_calls: Callable[[], int] | None = None,
        resident: Callable[[], int] = lambda: resident_bytes(),
        trim: Callable[[], None] = lambda: _malloc_trim(),
    ) -> None:
        self._num_calls = num_calls
        self._resident = resident
        self._trim = trim
        self._smallest = 0
        self._seen = -1

    def look(self) -> None:
        """Trim the process if it has grown, or for the first time, and nothing is being computed."""
        if self._num_calls is not None and (seen := self._num_calls()) != self._seen:
            self._seen = seen
            return
        if self._resident() > GROWTH * self._smallest:
            self._trim()
        now = self._resident()
        self._smallest = min(self._smallest or now, now)


def give_back_freed(num_calls: Callable[[], int] | None = None) -> None:
    """Look every `LOOK_S` seconds in a thread that ends with the process. See `Trimmer` for `num_calls`.

    Does nothing where the C library is not glibc.
    """
    if not can_trim():
        return
    trimmer = Trimmer(num_calls)

    def keep_looking() -> None:
        while True:
            time.sleep(LOOK_S)
            trimmer.look()

    threading.Thread(target=keep_looking, name="fewshard-memory", daemon=True).start()


def can_trim() -> bool:
    """Whether the C library can give memory back."""
    return sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim")


def resident_bytes() -> int:
    """The memory of this process."""
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _malloc_trim() -> None:
    ctypes.CDLL(None).malloc_trim(0)  # other threads run meanwhile
