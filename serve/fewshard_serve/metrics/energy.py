"""Measures the energy of each model's forward passes with the energy counter of an NVIDIA GPU.

The counter is read with nvidia-ml-py at every scrape. `rayserve.replica` creates the reader for the recorder.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping

logger = logging.getLogger(__name__)


def energy_reader(uuid: str) -> Callable[[], float] | None:
    """Return a function that reads the joules this GPU has used since its driver was loaded.

    uuid: from `torch.cuda.get_device_properties`, with or without the prefix "GPU-" or "MIG-".

    Returns None and logs why if there is no driver, no such GPU, or no counter (before Volta). The returned
    function raises `pynvml.NVMLError` if the driver fails later.
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
    """Divides the energy that the device used between two reads among the models, by their running time.

    Energy of idle time is assigned to no model. `read_joules` reads the device's cumulative counter, which
    also includes the work of other processes on the device.
    """

    def __init__(self, read_joules: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> None:
        self._read_joules = read_joules
        self._clock = clock
        self._lock = threading.Lock()
        self._joules, self._at = read_joules(), clock()
        self._busy_s: dict[str, float] = {}
        self._of: dict[str, float] = {}

    def update(self, busy_s: Mapping[str, float]) -> dict[str, float]:
        """Return the joules of each model since the start.

        busy_s: seconds in each model's forward passes since the start.
        """
        with self._lock:
            joules, now = self._read_joules(), self._clock()
            ran = {model: seconds - self._busy_s.get(model, 0.0) for model, seconds in busy_s.items()}
            # A pass that began before the last read counts now: the sum may exceed the time between reads.
            whole = max(now - self._at, sum(ran.values()))
            for model, seconds in ran.items():
                share = seconds / whole if whole else 0.0
                self._of[model] = self._of.get(model, 0.0) + share * max(joules - self._joules, 0.0)
            self._joules, self._at, self._busy_s = joules, now, dict(busy_s)
            return dict(self._of)
