"""Which device and number format "auto" means on this machine; used by recipes, the server and `doctor`."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from fewshard_core.formats import AUTO, FORMATS


def storage_dtype(name: str) -> torch.dtype:
    """The dtype of the weights in a number format. Raises ValueError for a name that is none."""
    found = getattr(torch, FORMATS[name].storage)
    assert isinstance(found, torch.dtype)
    return found


@dataclass(frozen=True, slots=True)
class Choice:
    """A name and the reason it was chosen, in words."""

    name: str
    reason: str


def choose_device(wished: str = "auto") -> Choice:
    """ "cpu" or "cuda". Raises ValueError where CUDA is asked for and there is none."""
    if wished == "auto":
        found = torch.cuda.is_available()
        return Choice("cuda", "a CUDA device is there") if found else Choice("cpu", "no CUDA device is there")
    if wished == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda is asked for, but torch sees no CUDA device; use auto or cpu")
    return Choice(wished, "asked for")


def choose_dtype(wished: str = "auto", device: str = "cpu") -> Choice:
    """The name of a number format: bf16 where the device has matrix units for it, else fp32.

    Raises ValueError for a name that is none.

    AVX512-BF16 without AMX is not enough: there bf16 products measured 0.4x to 0.7x the speed of fp32.
    """
    if wished != AUTO:
        return Choice(FORMATS[wished].name, "asked for")
    if device == "cuda":
        return _choose_on_gpu()
    if torch.cpu._is_amx_tile_supported():
        return Choice("bf16", "this CPU has AMX tiles, which multiply bf16 several times faster than fp32")
    if torch.cpu._is_avx512_bf16_supported():
        return Choice("fp32", "this CPU has AVX512-BF16 but no AMX; bf16 is slower than fp32 on such a CPU")
    return Choice("fp32", "this CPU has no matrix units for bf16")


def _choose_on_gpu() -> Choice:
    if torch.cuda.get_device_capability() >= (8, 0):
        return Choice("bf16", "this GPU has tensor cores for bf16")
    return Choice("fp32", "this GPU has no tensor cores for bf16")


_flushing = threading.local()


@contextmanager
def subnormals_flushed() -> Iterator[None]:
    """The CPU takes numbers nearer zero than 1.2e-38 for zero, in this thread and those it starts meanwhile.

    For such numbers it leaves its fast path: GELU of large negative values, common after pooling, took
    six times as long (docs/log.md). Blocks may be nested: the outermost ends it.
    """
    depth = getattr(_flushing, "depth", 0)
    _flushing.depth = depth + 1
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        _flushing.depth = depth
        if not depth:
            torch.set_flush_denormal(False)


def training_device() -> torch.device:
    """Where recipes train: the GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def gpu_use() -> dict[str, float]:
    """`gpu_share` (0 to 1, of the last moments) and `gpu_watts`; empty without a GPU or its counters."""
    if not torch.cuda.is_available():
        return {}
    try:
        return {"gpu_share": torch.cuda.utilization() / 100, "gpu_watts": torch.cuda.power_draw() / 1000}
    except (ModuleNotFoundError, RuntimeError):
        return {}
