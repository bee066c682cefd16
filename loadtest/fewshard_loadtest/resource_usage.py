"""What a server's process and all below it use, read from this machine while it is measured.

CPU, memory and power of a server while a run lasts, sampled from a thread; `campaign` uses it.

Energy is measured where the machine lets it be read (RAPL counters of the package, a GPU's power draw), and
otherwise modelled from processor time; every figure says which.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pynvml


@dataclass(frozen=True, slots=True)
class Memory:
    """One process. `pss_mib` shares out what several processes map, so that it may be added up."""

    name: str
    rss_mib: float
    pss_mib: float


def cpu_seconds(pid: int) -> float:
    """CPU time that the tree has used so far, with children that have ended and were awaited.

    The difference of two calls is what was used in between. 0 where there is no such process.
    """
    return sum(_cpu_of(process) for process in tree(pid))


def memory_of(pid: int) -> list[Memory]:
    """The process and all below it, the heaviest first."""
    weighed = [_weigh(process) for process in tree(pid)]
    return sorted((entry for entry in weighed if entry), key=lambda entry: -entry.rss_mib)


def tree(pid: int) -> Iterator[psutil.Process]:
    """The process and its descendants; none where it has gone."""
    try:
        root = psutil.Process(pid)
        yield from [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return


def _cpu_of(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)


def _weigh(process: psutil.Process) -> Memory | None:
    """None for a process that has just gone."""
    try:
        info = process.memory_full_info()
        return Memory(role(process.cmdline()), round(info.rss / 2**20, 1), round(info.pss / 2**20, 1))
    except psutil.Error:
        return None


def role(command: Sequence[str]) -> str:
    """A short name: Ray renames its workers (`ray::ServeReplica:…`); others go by program and script."""
    if not command:
        return "unknown"
    if command[0].startswith("ray::"):
        return command[0].split()[0]
    program = Path(command[0]).name
    scripts = [Path(part).name for part in command[1:] if part.endswith((".py", "/fewshard"))]
    return f"{program} {scripts[0]}" if scripts else program


INTERVAL_S = 0.5
POWERCAP = Path("/sys/class/powercap")


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
class ResourceMonitor:
    """`with Watch(pid) as watch: …`, then `watch.usage()`.

    pid: the server's process; 0 for a server on another machine.
    powercap: where the kernel shows the energy counters.
    nvml: nvidia-ml-py's module, or what has its functions.
    """

    pid: int
    powercap: Path = POWERCAP
    nvml: Any = pynvml
    _gpu: list[tuple[float, float, float]] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "ResourceMonitor":
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
        """Sample until told to stop; end at once on a machine whose GPUs cannot be read."""
        try:
            self.nvml.nvmlInit()
        except self.nvml.NVMLError:
            return
        try:
            while (sample := read_gpus(self.nvml)) is not None:
                self._gpu.append(sample)
                if self._stop.wait(INTERVAL_S):
                    return
        finally:
            self.nvml.nvmlShutdown()


def read_gpus(nvml: Any) -> tuple[float, float, float] | None:
    """Utilisation in percent (mean), memory in MiB and power in watts (sums) of all GPUs.

    None where there is no GPU, or one does not tell all three. NVML must have been initialised.
    """
    try:
        gpus = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        rows = [_read_gpu(nvml, gpu) for gpu in gpus]
    except nvml.NVMLError:
        return None
    if not rows:
        return None
    share, memory, power = (sum(column) for column in zip(*rows, strict=True))
    return share / len(rows), memory, power


def _read_gpu(nvml: Any, gpu: Any) -> tuple[float, float, float]:
    # The second version leaves out what the driver reserves, as nvidia-smi does.
    used = nvml.nvmlDeviceGetMemoryInfo(gpu, version=nvml.nvmlMemory_v2).used
    watts = nvml.nvmlDeviceGetPowerUsage(gpu) / 1000
    return float(nvml.nvmlDeviceGetUtilizationRates(gpu).gpu), used / 2**20, watts


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
