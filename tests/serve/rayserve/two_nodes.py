"""Runs a group over a Ray cluster of two nodes, in a process of its own; prints what it found as JSON.

Called by `test_two_nodes`. Two raylets on this machine stand for two machines: the leader is on one, its
workers are spread. A worker is killed, then a whole node, then a third node comes.
"""

import json
import os
import signal
import time
from pathlib import Path

os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "RAY_AUTH_MODE": "disabled"}

import numpy as np
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fewshard_core.values import TextInput
from fewshard_serve.engine.settings import EngineSettings
from fewshard_serve.group.settings import ExpertsSettings
from fewshard_serve.rayserve.deployment_plan import HOST_CPUS, ModelSpec

SHARDS = 3
TEXTS = ["a gripping and often funny film", "dull", "the plot is slow , the actors are not", "warm"]


class Leader:
    """What a Serve replica does with a sharded model, without Serve."""

    def __init__(self):
        from fewshard_serve.rayserve.shard_actors import load_with_shards

        experts = ExpertsSettings(SHARDS, placement="contiguous", strategy="spread")
        spec = ModelSpec("sharded", "zoo:sst2-moe", "cpu", "fp32", EngineSettings(), experts)
        self.model = load_with_shards(spec, 0.0, is_on_one_machine=False)

    def logits(self):
        items = self.model.prepare([TextInput(text) for text in TEXTS])
        return self.model.run(items).logits

    def state(self):
        group, peers = self.model.group(), self.model._group._membership._peers
        return {
            "size": group.size,
            "problem": self.model.problem(),
            "reforms": group.num_reforms,
            "addresses": [peer.hello.address for peer in peers.values()],
            "pids": {shard: peer.hello.pid for shard, peer in peers.items()},
            "node": ray.get_runtime_context().get_node_id(),
        }


def whole_logits():
    from fewshard_serve.backends.load import load_model

    model = load_model("whole", "zoo:sst2-moe", "cpu", "fp32")
    return model.run(model.prepare([TextInput(text) for text in TEXTS])).logits


def node_of(pid):
    """The node whose raylet is the parent of a process."""
    parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    command = Path(f"/proc/{parent}/cmdline").read_text().split("\0")
    return next(part.partition("=")[2] for part in command if part.startswith("--node_id="))


def main():
    expected = whole_logits()
    head = {"num_cpus": 1.0, "resources": {"leader": 1}, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, connect=True, head_node_args=head)
    away = cluster.add_node(num_cpus=1.0)
    bundles = [{"CPU": HOST_CPUS, "leader": 1}, *[{"CPU": HOST_CPUS}] * (SHARDS - 1)]
    group = placement_group(bundles, strategy="SPREAD")
    ray.get(group.ready(), timeout=180)
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
    leader = ray.remote(Leader).options(num_cpus=HOST_CPUS, scheduling_strategy=strategy).remote()
    found = {}

    def check(name):
        error = float(np.abs(ray.get(leader.logits.remote(), timeout=180) - expected).max())
        found[name] = {"error": error, **ray.get(leader.state.remote())}
        print(name, found[name], flush=True)
        return found[name]

    def wait(condition, timeout_s=90):
        give_up_at = time.monotonic() + timeout_s
        while not condition(ray.get(leader.state.remote())):
            assert time.monotonic() < give_up_at, ray.get(leader.state.remote())
            time.sleep(0.2)

    start = check("start")
    homes = {shard: node_of(pid) for shard, pid in start["pids"].items()}
    found["nodes"] = len({start["node"], *homes.values()})
    os.kill(start["pids"][1], signal.SIGKILL)
    check("worker killed")
    wait(lambda state: state["size"] == SHARDS)
    again = check("worker back")
    homes = {shard: node_of(pid) for shard, pid in again["pids"].items()}
    found["shards away"] = [shard for shard, home in homes.items() if home == away.node_id]
    cluster.remove_node(away, allow_graceful=False)
    wait(lambda state: state["size"] < SHARDS)
    check("node lost")
    cluster.add_node(num_cpus=1.0)
    wait(lambda state: state["size"] == SHARDS)
    check("node replaced")
    print(json.dumps(found), flush=True)
    remove_placement_group(group)
    ray.shutdown()
    cluster.shutdown()


main()
