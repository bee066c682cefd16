"""Keeps freed memory in the process, since each step or batch allocates the same large tensors again."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> None:
    """Configure glibc to allocate large blocks on the heap and never return them to the system by itself.

    By default each large tensor is mapped and unmapped again. On two cores, page faults took a third of the
    time of CNN training and a tenth of that of large batches (docs/log.md). Does nothing if the C library is
    not glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 256 * 1024 * 1024)
