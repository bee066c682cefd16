"""A node of a Ray cluster is told to go, as the chart's preStop tells it; prints what clients saw as JSON.

Called by `test_leaving_node`. Raylets on this machine stand for pods.
"""

import asyncio
import json
import os
import subprocess
import sys

from fewshard_serve.rayserve.environment import cluster_environment

os.environ |= cluster_environment() | {"RAY_AUTH_MODE": "disabled", "RAY_SERVE_ENABLE_HA_PROXY": "0"}

import ray
from ray import serve
from ray.cluster_utils import Cluster
from ray.serve.context import _get_global_client

from fewshard_core.values import TextInput
from fewshard_serve.app import build
from fewshard_serve.core import PredictionRequest
from fewshard_serve.rayserve.serve_config import AppArguments

APP = "model-m"
MODEL = {"name": "m", "path": "zoo:sst2-dense", "device": "cpu", "replicas": {"min": 2, "max": 2}}
DRAIN_S = 60
RAY = "from ray.scripts.scripts import cli; cli()"
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


def replica_nodes():
    details = _get_global_client().get_serve_details()
    replicas = details["applications"][APP]["deployments"]["host"]["replicas"]
    return sorted(str(replica["node_id"]) for replica in replicas if replica["state"] == "RUNNING")


def drain(address, node_id):
    told = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the pod is going"]
    told += ["--deadline-remaining-seconds", str(DRAIN_S), "--address", address, "--node-id", node_id]
    return subprocess.run([sys.executable, "-c", RAY, "drain-node", *told], check=False).returncode


async def ask(handle, seen, is_over):
    while not is_over.is_set():
        try:
            request = PredictionRequest([TextInput("a funny film")], timeout_s=10.0)
            call = handle.classify_for_gateway.remote("m", request)
            seen.append(type(await call).__name__)
        except Exception as error:  # noqa: BLE001  whatever it is, it is what a client would have met
            seen.append(repr(error))
        await asyncio.sleep(0.02)


async def lose_a_node(cluster, nodes, handle):
    seen, is_over = [], asyncio.Event()
    clients = [asyncio.create_task(ask(handle, seen, is_over)) for _ in range(3)]
    await asyncio.sleep(1)
    before = await asyncio.to_thread(replica_nodes)
    leaving = next(node for node in nodes if node.node_id == before[0])
    status = await asyncio.to_thread(drain, cluster.address, leaving.node_id)
    after = before
    for _ in range(2 * DRAIN_S):
        after = await asyncio.to_thread(replica_nodes)
        if leaving.node_id not in after and len(after) == 2:
            break
        await asyncio.sleep(0.5)
    await asyncio.sleep(6)  # the old replica answers what it has
    await asyncio.to_thread(cluster.remove_node, leaving, allow_graceful=False)
    await asyncio.sleep(5)
    is_over.set()
    await asyncio.gather(*clients)
    return {"status": status, "left": leaving.node_id not in after, "num_after": len(after), "seen": seen}


def main():
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "num_cpus": 0})
    nodes = [cluster.add_node(**NODE) for _ in range(3)]
    cluster.wait_for_nodes()
    ray.init(address=cluster.address, log_to_driver=False)
    serve.start(proxy_location="Disabled")
    app = build(AppArguments(application=APP, config={"models": [MODEL]}))
    handle = serve.run(app, name=APP, route_prefix=f"/v2/models/{MODEL['name']}")
    print(json.dumps(asyncio.run(lose_a_node(cluster, nodes, handle))), flush=True)
    serve.shutdown()
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
