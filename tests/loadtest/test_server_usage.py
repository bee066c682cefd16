"""CPU, memory and power of a server and its GPUs while a run lasts."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from fewshard_loadtest.resource_usage import ResourceMonitor, Usage, rapl_joules

MIB = 2**20
# Of each GPU: percent busy, bytes in use, milliwatts; None is a figure that it does not tell.
TWO_GPUS = ((50, 1000 * MIB, 200_500), (70, 500 * MIB, 99_500))
MUTE = (50, 1000 * MIB, None)


class NotSupported(Exception):
    """Stands for NVML's error."""


def nvml_of(*gpus: tuple[int, int, int | None], has_driver: bool = True) -> SimpleNamespace:
    """What `Watch` calls of nvidia-ml-py, on a machine with these GPUs; `calls` are those made."""
    calls: list[str] = []

    def init() -> None:
        calls.append("init")
        if not has_driver:
            raise NotSupported("Driver Not Loaded")

    def power(gpu: tuple[int, int, int | None]) -> int:
        if gpu[2] is None:
            raise NotSupported("Not Supported")
        return gpu[2]

    return SimpleNamespace(
        calls=calls,
        NVMLError=NotSupported,
        nvmlMemory_v2=pynvml.nvmlMemory_v2,
        nvmlInit=init,
        nvmlShutdown=lambda: calls.append("shutdown"),
        nvmlDeviceGetCount=lambda: len(gpus),
        nvmlDeviceGetHandleByIndex=lambda index: gpus[index],
        nvmlDeviceGetUtilizationRates=lambda gpu: SimpleNamespace(gpu=gpu[0], memory=3),
        nvmlDeviceGetMemoryInfo=lambda gpu, version: SimpleNamespace(used=gpu[1], total=2**40),
        nvmlDeviceGetPowerUsage=power,
    )


def watched(folder: Path, nvml: object) -> Usage:
    with ResourceMonitor(0, powercap=folder, nvml=nvml) as watch:
        time.sleep(0.05)
    return watch.usage()


def test_gpus_are_added_up_and_their_power_becomes_energy(tmp_path: Path) -> None:
    nvml = nvml_of(*TWO_GPUS)
    usage = watched(tmp_path, nvml)
    assert (usage.gpu_share, usage.gpu_memory_mib) == (0.6, 1500.0)
    assert usage.gpu_joules == pytest.approx(300.0 * usage.seconds, rel=0.02)
    assert nvml.calls == ["init", "shutdown"]


@pytest.mark.parametrize(
    ("nvml", "calls"),
    [
        (nvml_of(has_driver=False), ["init"]),
        (nvml_of(), ["init", "shutdown"]),
        (nvml_of(TWO_GPUS[0], MUTE), ["init", "shutdown"]),
    ],
    ids=["no driver", "no GPU", "one is mute"],
)
def test_gpus_that_cannot_be_read_leave_no_figure(
    tmp_path: Path, nvml: SimpleNamespace, calls: list[str]
) -> None:
    usage = watched(tmp_path, nvml)
    assert (usage.gpu_share, usage.gpu_memory_mib, usage.gpu_joules) == (None, None, None)
    assert nvml.calls == calls


def test_nvidias_module_has_what_the_stand_in_has() -> None:
    names = [name for name in vars(nvml_of()) if name != "calls"]
    assert [name for name in names if not hasattr(pynvml, name)] == []


def test_a_machine_without_a_driver_is_watched_all_the_same(tmp_path: Path) -> None:
    """By NVIDIA's own module: without a driver it finds no library."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        assert watched(tmp_path, pynvml).gpu_share is None
    else:
        pynvml.nvmlShutdown()
        pytest.skip("this machine has a driver")


def test_energy_counters_are_added_up_where_there_are_any(tmp_path: Path) -> None:
    assert rapl_joules(tmp_path) is None
    for package, joules in ((0, 3), (1, 4)):
        (tmp_path / f"intel-rapl:{package}").mkdir()
        (tmp_path / f"intel-rapl:{package}/energy_uj").write_text(f"{joules * 1_000_000}\n")
    assert rapl_joules(tmp_path) == 7.0


def test_a_watch_sees_this_process_work(tmp_path: Path) -> None:
    with ResourceMonitor(os.getpid(), powercap=tmp_path, nvml=nvml_of(has_driver=False)) as watch:
        until = time.process_time() + 0.3
        while time.process_time() < until:
            pass
    usage = watch.usage()
    assert usage.cpu_s is not None
    assert usage.cpu_s >= 0.2
    assert usage.memory_mib is not None
    assert usage.memory_mib > 5
    assert usage.joules is None
    assert usage.gpu_joules is None
