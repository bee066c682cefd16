"""Keep freed memory in the process: each step or batch frees and asks for the same large tensors."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> None:
    """Tell glibc to serve large blocks from the heap and never give them back.

    By default each large tensor is mapped and unmapped anew; on two cores a third of the time of CNN
    training and a tenth of that of large batches went to page faults (docs/log.md). Does nothing where
    the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 256 * 1024 * 1024)
