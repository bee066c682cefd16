"""A pod that goes is drained first: its replicas are replaced elsewhere, and no request fails."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from chart_render import Renderer, pod_templates

HERE = Path(__file__).parent


def test_the_chart_tells_ray_before_it_stops_it():
    """What `leaving_node.drain` does; there the node is named, in a pod it is the only one."""
    pod = pod_templates(Renderer().render({}))["workers cpu"]["spec"]["containers"][0]
    shell, option, script = pod["lifecycle"]["preStop"]["exec"]["command"]
    assert (shell, option) == ("bash", "-c")
    drained, slept, stopped = script.split("; ")
    assert drained.startswith("ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION --reason-message ")
    assert drained.endswith("--deadline-remaining-seconds 30")
    assert (slept, stopped) == ("sleep 30", "ray stop")


@pytest.mark.slow
@pytest.mark.server
@pytest.mark.timeout(400)
def test_no_request_fails_when_a_node_goes():
    command = [sys.executable, str(HERE / "leaving_node.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=380, check=False)
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert (found["status"], found["left"], found["num_after"]) == (0, True, 2)
    assert len(found["seen"]) > 100
    assert set(found["seen"]) == {"Classified"}
