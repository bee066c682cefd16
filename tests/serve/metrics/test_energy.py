"""Energy is split by the time models ran; NVML is called as its header says, here a library of our own."""

import ctypes
import json
import os
import subprocess
import sys

import pytest

from fewshard_serve.core import BatchStats
from fewshard_serve.metrics import CostSettings, Metrics
from fewshard_serve.metrics.energy import MeasuredEnergy, energy_reader

NVML = r"""
#include <string.h>
static unsigned long long energy = 1500;
int nvmlInitWithFlags(unsigned int flags) { return 0; }
const char *nvmlErrorString(int code) { return "?"; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    if (strcmp(uuid, "GPU-1234")) return 6;
    *device = &energy;
    return 0;
}
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *energy_mj) {
    if (device != &energy) return 2;
    *energy_mj = energy;
    energy += 250;
    return 0;
}
"""


class Device:
    def __init__(self):
        self.joules, self.now = 1000.0, 50.0

    def meter(self):
        return MeasuredEnergy(lambda: self.joules, lambda: self.now)

    def go(self, seconds, joules):
        self.now += seconds
        self.joules += joules


def test_energy_is_split_by_the_time_that_models_ran():
    device = Device()
    meter = device.meter()
    device.go(10, 1000)
    assert meter.update({"a": 2.0, "b": 3.0}) == {"a": 200.0, "b": 300.0}, "half the time was idle"
    device.go(10, 500)
    assert meter.update({"a": 12.0, "b": 3.0}) == {"a": 700.0, "b": 300.0}
    assert meter.update({"a": 12.0, "b": 3.0}) == {"a": 700.0, "b": 300.0}, "nothing is counted twice"


def test_no_more_is_given_than_was_used():
    device = Device()
    meter = device.meter()
    device.go(1, 100)
    assert meter.update({"a": 4.0}) == {"a": 100.0}, "a pass that began before is counted at its end"
    device.go(1, -50)
    assert meter.update({"a": 5.0}) == {"a": 100.0}, "a counter that starts anew is no loss"


READ = """
import json, logging, sys
from fewshard_serve.metrics.energy import energy_reader
logging.basicConfig(stream=sys.stderr)
read = energy_reader(sys.argv[1])
print(json.dumps(read and [read(), read()]))
"""


@pytest.fixture(scope="module")
def ask_nvml(tmp_path_factory):
    """Two reads of a GPU and the log, of a process that finds our library under the driver's name."""
    folder = tmp_path_factory.mktemp("nvml")
    (folder / "nvml.c").write_text(NVML)
    try:
        built = ["cc", "-shared", "-fPIC", "-o", folder / "libnvidia-ml.so.1", folder / "nvml.c"]
        subprocess.run(built, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no C compiler here")

    def ask(uuid):
        environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
        done = subprocess.run(
            [sys.executable, "-c", READ, uuid], env=environment, capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout), done.stderr

    return ask


@pytest.mark.parametrize("uuid", ["1234", "GPU-1234"])
def test_nvml_is_read_in_joules(ask_nvml, uuid):
    assert ask_nvml(uuid) == ([1.75, 2.0], ""), "the first read, of 1.5 J, was a trial"


def test_an_unknown_gpu_has_no_reader(ask_nvml):
    read, log = ask_nvml("GPU-9")
    assert read is None
    assert "cannot be read: Not Found" in log


def test_a_machine_without_the_driver_has_no_reader(caplog):
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        assert energy_reader("1234") is None
        assert "cannot be read: NVML Shared Library Not Found" in caplog.text
    else:
        pytest.skip("this machine has the driver")


def test_an_environment_without_the_library_has_no_reader(caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert energy_reader("1234") is None
    assert "cannot be read" in caplog.text


def samples(metrics):
    names = ("fewshard_energy_joules_total", "fewshard_cost_usd_total")
    return [line for line in metrics.render().decode().splitlines() if line.startswith(names)]


def test_cost_and_modelled_energy_follow_the_time_in_forward_passes(model_source):
    metrics = Metrics()
    metrics.add_model(model_source("m", cost=CostSettings(usd_per_hour=3.6, watts=50.0)))
    for _ in range(4):
        metrics.observe_batch(BatchStats("m", 1, 1, 0, 0.5, (0.0,)))
    assert samples(metrics) == [
        'fewshard_energy_joules_total{method="modelled",model="m"} 100',
        'fewshard_cost_usd_total{model="m"} 0.002',
    ]


def test_measured_energy_goes_before_the_model(model_source):
    device = Device()
    metrics = Metrics(read_joules=lambda: device.joules)
    metrics.add_model(model_source("m", cost=CostSettings(watts=50.0)))
    metrics.observe_batch(BatchStats("m", 1, 1, 0, 1000.0, (0.0,)))
    device.go(0, 64)
    assert samples(metrics) == ['fewshard_energy_joules_total{method="measured",model="m"} 64']


def test_nothing_is_said_of_what_nobody_told(model_source):
    metrics = Metrics()
    metrics.add_model(model_source("m"))
    assert samples(metrics) == []
