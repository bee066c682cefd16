"""Chooses device and number format for "auto" by rules; used by recipes, `classifier` and `doctor`."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from fewshard_core.formats import AUTO, FORMATS


def storage_dtype(name: str) -> torch.dtype:
    """Return the dtype of the weights in a number format. Raises ValueError for an unknown name."""
    found = getattr(torch, FORMATS[name].storage)
    assert isinstance(found, torch.dtype)
    return found


@dataclass(frozen=True, slots=True)
class Choice:
    """A name and the reason it was chosen, in words."""

    name: str
    reason: str


def choose_device(wished: str = "auto") -> Choice:
    """Choose "cpu" or "cuda". Raises ValueError if CUDA is requested and not available."""
    if wished == "auto":
        found = torch.cuda.is_available()
        return Choice("cuda", "a CUDA device is there") if found else Choice("cpu", "no CUDA device is there")
    if wished == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda is asked for, but torch sees no CUDA device; use auto or cpu")
    return Choice(wished, "asked for")


def choose_dtype(wished: str = "auto", device: str = "cpu") -> Choice:
    """Choose a number format by a rule: bf16 if the device has matrix units for it, else fp32.

    For training, for GPUs, and where nothing is measured; `classifier.execution` measures checkpoints.
    AVX512-BF16 without AMX does not suffice: autocast products took 1.4 to 2.5 times as long as fp32 there.
    Raises ValueError for an unknown name.
    """
    if wished != AUTO:
        return Choice(FORMATS[wished].name, "asked for")
    if device == "cuda":
        return _choose_on_gpu()
    if torch.cpu._is_amx_tile_supported():
        return Choice("bf16", "this CPU has AMX tiles, which multiply bf16 several times faster than fp32")
    if torch.cpu._is_avx512_bf16_supported():
        return Choice("fp32", "this CPU has AVX512-BF16 but no AMX; bf16 may be slower than fp32")
    return Choice("fp32", "this CPU has no matrix units for bf16")


def _choose_on_gpu() -> Choice:
    if torch.cuda.get_device_capability() >= (8, 0):
        return Choice("bf16", "this GPU has tensor cores for bf16")
    return Choice("fp32", "this GPU has no tensor cores for bf16")


_flushing = threading.local()


@contextmanager
def subnormals_flushed() -> Iterator[None]:
    """Make the CPU treat numbers below 1.2e-38 as zero, in this thread and threads started in the block.

    Subnormals take the CPU's slow path: GELU of large negative values, common after pooling, took six times
    as long (docs/log.md). Blocks may be nested; the outermost one restores the setting.
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
    """Return the device for recipes: the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def gpu_use() -> dict[str, float]:
    """Return `gpu_share` (0 to 1, recent) and `gpu_watts`; empty without a GPU or its counters."""
    if not torch.cuda.is_available():
        return {}
    try:
        return {"gpu_share": torch.cuda.utilization() / 100, "gpu_watts": torch.cuda.power_draw() / 1000}
    except (ModuleNotFoundError, RuntimeError):
        return {}
