"""The energy counter of an NVIDIA GPU, by the driver's library; `rayserve.hosting` gives it to metrics."""

import ctypes
import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger(__name__)

LIBRARY = "libnvidia-ml.so.1"


class NvmlError(Exception):
    """The driver refused; its code is in the message."""


def energy_reader(uuid: str) -> Callable[[], float] | None:
    """A function that reads the joules this GPU has used since its driver was loaded.

    `uuid` as `torch.cuda.get_device_properties` has it. None where there is no such library or counter
    (before Volta); the log says why.
    """
    try:
        return reader_of(ctypes.CDLL(LIBRARY), uuid)
    except (OSError, AttributeError, NvmlError) as error:
        logger.warning("the GPU's energy cannot be read: %s", error)
        return None


def reader_of(library: Any, uuid: str) -> Callable[[], float]:
    """The same of a loaded library. Raises `NvmlError`; it reads once, so that a failure shows here."""
    _call(library.nvmlInit_v2)
    device = ctypes.c_void_p()
    name = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
    _call(library.nvmlDeviceGetHandleByUUID, name.encode(), ctypes.byref(device))

    def read() -> float:
        millijoules = ctypes.c_ulonglong()
        _call(library.nvmlDeviceGetTotalEnergyConsumption, device, ctypes.byref(millijoules))
        return millijoules.value / 1000

    read()
    return read


def _call(function: Any, *arguments: Any) -> None:
    status = function(*arguments)
    if status != 0:
        raise NvmlError(f"NVML answered {status}")
