"""CPU, memory and power of a server while a run lasts, sampled from a thread; `campaign` uses it.

Energy is measured where the machine lets it be read (RAPL counters of the package, a GPU's power draw), and
otherwise modelled from processor time; every figure says which.
"""

import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from fewshard_loadtest.proctree import cpu_seconds, memory_of

INTERVAL_S = 0.5
POWERCAP = Path("/sys/class/powercap")
GPU_QUERY = (
    "nvidia-smi",
    "--query-gpu=utilization.gpu,memory.used,power.draw",
    "--format=csv,noheader,nounits",
)


@dataclass(frozen=True, slots=True)
class Usage:
    """Of one run. `cpu_s`: processor time of the server's tree; `machine_cpu`: busy cores of the whole
    machine, the generator included. `joules` is None where no counter can be read; `gpu_*` without a GPU."""

    seconds: float
    cpu_s: float | None = None
    machine_cpu: float | None = None
    memory_mib: float | None = None
    joules: float | None = None
    gpu_share: float | None = None
    gpu_memory_mib: float | None = None
    gpu_joules: float | None = None


@dataclass
class Watch:
    """`with Watch(pid) as watch: …`, then `watch.usage()`. `pid` 0: a server on another machine."""

    pid: int
    powercap: Path = POWERCAP
    gpu_command: tuple[str, ...] = GPU_QUERY
    _gpu: list[tuple[float, float, float]] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Watch":
        self._begun_at = time.monotonic()
        self._cpu_s = cpu_seconds(self.pid) if self.pid else 0.0
        self._joules = rapl_joules(self.powercap)
        self._machine_s = _busy_seconds()
        self._thread = threading.Thread(target=self._sample_gpu, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._seconds = time.monotonic() - self._begun_at
        self._busy_s = _busy_seconds() - self._machine_s
        self._used_s = cpu_seconds(self.pid) - self._cpu_s if self.pid else None
        ended = rapl_joules(self.powercap)
        # The counter starts anew at its end; such a run has no figure.
        spent = None if ended is None or self._joules is None else ended - self._joules
        self._spent_j = spent if spent is not None and spent >= 0 else None
        self._memory = sum(process.pss_mib for process in memory_of(self.pid)) if self.pid else None
        self._thread.join()

    def usage(self) -> Usage:
        """What was used between entering and leaving."""
        gpu = [sum(values) / len(values) for values in zip(*self._gpu, strict=True)] if self._gpu else None
        return Usage(
            seconds=round(self._seconds, 3),
            cpu_s=None if self._used_s is None else round(self._used_s, 3),
            machine_cpu=round(self._busy_s / self._seconds, 3),
            memory_mib=None if self._memory is None else round(self._memory, 1),
            joules=None if self._spent_j is None else round(self._spent_j, 3),
            gpu_share=None if gpu is None else round(gpu[0] / 100, 3),
            gpu_memory_mib=None if gpu is None else round(gpu[1], 1),
            gpu_joules=None if gpu is None else round(gpu[2] * self._seconds, 3),
        )

    def _sample_gpu(self) -> None:
        """Until told to stop; at once where there is no such command."""
        while (sample := read_gpus(self.gpu_command)) is not None:
            self._gpu.append(sample)
            if self._stop.wait(INTERVAL_S):
                return


def read_gpus(command: tuple[str, ...]) -> tuple[float, float, float] | None:
    """Utilisation in percent (mean), memory in MiB and power in watts (sums) of all GPUs; None without."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        rows = [
            [float(cell) for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()
        ]
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    if not rows:
        return None
    share, memory, power = (sum(column) for column in zip(*rows, strict=True))
    return share / len(rows), memory, power


def rapl_joules(folder: Path) -> float | None:
    """The packages' energy counters added up; None where there is none or it may not be read."""
    try:
        counters = [*folder.glob("intel-rapl:?/energy_uj")]
        return sum(int(counter.read_text()) for counter in counters) / 1e6 if counters else None
    except (OSError, ValueError):
        return None


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))
