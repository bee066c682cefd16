"""CPU, memory, GPU and energy use of a server's process tree on this machine, during a run.

`sweep` uses `ResourceMonitor`; `headless` and `peers` read CPU time and memory directly. Energy is measured
where the machine allows it (RAPL counters of the CPU package, power draw of a GPU). `report` models it from
CPU time otherwise, and labels every figure.
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
    """Memory of one process.

    name: short name of the process.
    rss_mib: resident memory in MiB.
    pss_mib: proportional memory in MiB; it divides shared pages among processes, so values can be summed.
    """

    name: str
    rss_mib: float
    pss_mib: float


def cpu_seconds(pid: int) -> float:
    """CPU seconds of the process tree so far, including children that were reaped; 0 without such a process.

    The difference of two calls is the CPU time in between.
    """
    return sum(_cpu_of(process) for process in tree(pid))


def memory_of(pid: int) -> list[Memory]:
    """Memory of the process and its descendants, largest first."""
    weighed = [_weigh(process) for process in tree(pid)]
    return sorted((entry for entry in weighed if entry), key=lambda entry: -entry.rss_mib)


def tree(pid: int) -> Iterator[psutil.Process]:
    """The process and its descendants; empty if it has ended."""
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
    """Memory of a process; None if it has just ended."""
    try:
        info = process.memory_full_info()
        return Memory(role(process.cmdline()), round(info.rss / 2**20, 1), round(info.pss / 2**20, 1))
    except psutil.Error:
        return None


def role(command: Sequence[str]) -> str:
    """A short process name: `ray::ServeReplica:…` for Ray workers, else program and script."""
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
    """Resource usage of one run. None means unknown.

    seconds: length of the run.
    cpu_s: CPU seconds of the server's process tree.
    machine_cpu: mean number of busy cores of the whole machine, load generator included.
    memory_mib: proportional memory of the server's processes.
    joules: energy of the CPU packages, if a counter is readable.
    gpu_share, gpu_memory_mib, gpu_joules: mean utilisation, memory and energy of the GPUs.
    """

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
    """Measures usage inside a block: `with ResourceMonitor(pid) as watch: …`, then `watch.usage()`.

    pid: the server's process; 0 for a server on another machine.
    powercap: the kernel's folder of energy counters.
    nvml: the nvidia-ml-py module, or an object with its functions.
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
        # The counter wraps around; a run in which it does has no figure.
        spent = None if ended is None or self._joules is None else ended - self._joules
        self._spent_j = spent if spent is not None and spent >= 0 else None
        self._memory = sum(process.pss_mib for process in memory_of(self.pid)) if self.pid else None
        self._thread.join()

    def usage(self) -> Usage:
        """Usage between entering and leaving the block."""
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
        """Sample until stopped; return at once if the GPUs cannot be read."""
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
    """Mean utilisation in percent, total memory in MiB and total power in watts of all GPUs.

    None if there is no GPU, or if one does not report all three. NVML must be initialised.
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
    # Version 2 excludes memory that the driver reserves, as nvidia-smi does.
    used = nvml.nvmlDeviceGetMemoryInfo(gpu, version=nvml.nvmlMemory_v2).used
    watts = nvml.nvmlDeviceGetPowerUsage(gpu) / 1000
    return float(nvml.nvmlDeviceGetUtilizationRates(gpu).gpu), used / 2**20, watts


def rapl_joules(folder: Path) -> float | None:
    """Sum of the CPU packages' energy counters in joules; None if none is readable."""
    try:
        counters = [*folder.glob("intel-rapl:?/energy_uj")]
        return sum(int(counter.read_text()) for counter in counters) / 1e6 if counters else None
    except (OSError, ValueError):
        return None


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))
