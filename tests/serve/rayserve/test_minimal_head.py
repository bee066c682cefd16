"""Ray without the processes that a server does not use: what runs, that it works, and that it ends."""

import json
import subprocess
import sys
import tempfile
import time

import psutil
import pytest

RUN = """
import json, os, sys
import psutil
from fewshard_serve.rayserve.environment import prepare_environment
prepare_environment(sys.argv[1])
from fewshard_serve.rayserve.cluster import ray_cluster
with ray_cluster(None, 1, forwards_output=sys.argv[2] == "forwards"):
    import ray
    answer = ray.get(ray.remote(lambda: 6 * 7).remote())
    found = psutil.Process().children(recursive=True)
    print(json.dumps([answer, {each.pid: " ".join(each.cmdline()) for each in found}]), flush=True)
    if sys.argv[2] == "dies":
        os._exit(1)
"""
UNUSED = ("monitor.py", "dashboard.py", "agent.py", "agent/main.py", "ray::DashboardAgent")


def start(how):
    """Return what a task answered, and the processes of a Ray that has ended: their commands by number."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # the path of a socket is limited
        done = subprocess.run(
            [sys.executable, "-c", RUN, folder, how], stdout=subprocess.PIPE, text=True, check=False
        )
        answer, found = json.loads(done.stdout)
        return answer, {int(number): command for number, command in found.items()}


def alive(processes):
    return [number for number in processes if psutil.pid_exists(number)]


@pytest.mark.parametrize("how", ["keeps", "dies"])
def test_only_the_two_servers_and_their_workers_run_and_none_outlives_us(how):
    answer, processes = start(how)
    assert answer == 42
    commands = list(processes.values())
    assert not [command for command in commands if any(name in command for name in UNUSED)], commands
    for server in ("gcs_server", "raylet"):
        assert any(f"/{server} " in command for command in commands)
    give_up_at = time.monotonic() + 60
    while alive(processes) and time.monotonic() < give_up_at:
        time.sleep(0.1)
    assert not alive(processes)


def test_the_log_monitor_runs_where_it_is_needed():
    _, processes = start("forwards")
    assert any("log_monitor.py" in command for command in processes.values())
