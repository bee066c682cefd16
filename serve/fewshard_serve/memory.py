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

LOOK_S = 15.0
GROWTH = 1.05
"""A process is trimmed while it is so many times as large as it was at its smallest."""

MAPPED_BYTES = 2**20
"""From this size on blocks are mapped one by one. Heaps of other threads are never trimmed at their tops."""
KEPT_BYTES = 8 * 2**20
"""The most that is kept at the top of a heap."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_STATM = Path("/proc/self/statm")


class Trimmer:
    """Trims this process while it is larger than it has been.

    resident, trim: the memory of the process in bytes, and what gives it back.
    """

    def __init__(
        self,
        resident: Callable[[], int] = lambda: resident_bytes(),
        trim: Callable[[], None] = lambda: _malloc_trim(),
    ) -> None:
        self._resident = resident
        self._trim = trim
        self._smallest = 0

    def look(self) -> None:
        """Trim the process if it has grown, or for the first time."""
        if self._resident() > GROWTH * self._smallest:
            self._trim()
        now = self._resident()
        self._smallest = min(self._smallest or now, now)


def give_back_freed() -> None:
    """Look every `LOOK_S` seconds in a thread that ends with the process; large blocks go back at once.

    Does nothing where the C library is not glibc.
    """
    if not can_trim():
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)  # stated, it no longer grows with what is freed
    mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)
    trimmer = Trimmer()

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
