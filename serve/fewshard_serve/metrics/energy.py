"""The energy counter of an NVIDIA GPU, read with nvidia-ml-py; `rayserve.hosting` gives it to metrics.

Joules of each model's forward passes, from a device that counts its own energy; read at every scrape.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping

logger = logging.getLogger(__name__)


def energy_reader(uuid: str) -> Callable[[], float] | None:
    """A function that returns the joules this GPU has used since its driver was loaded.

    `uuid`: as `torch.cuda.get_device_properties` has it, with or without the prefix "GPU-" or "MIG-".
    Returns None where there is no driver, no such GPU, or no counter (before Volta); the log says why.
    The returned function raises `pynvml.NVMLError` where the driver fails later.
    """
    try:
        import pynvml  # imported late: only a GPU needs it
    except ImportError as error:
        logger.warning("the GPU's energy cannot be read: %s", error)
        return None
    try:
        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByUUID(
            uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        )

        def read() -> float:
            millijoules: int = pynvml.nvmlDeviceGetTotalEnergyConsumption(device)
            return millijoules / 1000

        read()  # a missing counter fails here rather than at the first scrape
    except pynvml.NVMLError as error:
        logger.warning("the GPU's energy cannot be read: %s", error)
        return None
    return read


class MeasuredEnergy:
    """Splits what the device used between two reads by the time that each model ran on it.

    The part of the time in which nothing ran is nobody's. `read_joules` is the device's own cumulative
    counter; work of other processes on the same device is in it.
    """

    def __init__(self, read_joules: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> None:
        self._read_joules = read_joules
        self._clock = clock
        self._lock = threading.Lock()
        self._joules, self._at = read_joules(), clock()
        self._busy_s: dict[str, float] = {}
        self._of: dict[str, float] = {}

    def update(self, busy_s: Mapping[str, float]) -> dict[str, float]:
        """Joules of each model since the start; `busy_s`: seconds in its forward passes since the start."""
        with self._lock:
            joules, now = self._read_joules(), self._clock()
            ran = {model: seconds - self._busy_s.get(model, 0.0) for model, seconds in busy_s.items()}
            # A pass that began before the last read is counted now, so more may have run than time went by.
            whole = max(now - self._at, sum(ran.values()))
            for model, seconds in ran.items():
                share = seconds / whole if whole else 0.0
                self._of[model] = self._of.get(model, 0.0) + share * max(joules - self._joules, 0.0)
            self._joules, self._at, self._busy_s = joules, now, dict(busy_s)
            return dict(self._of)
