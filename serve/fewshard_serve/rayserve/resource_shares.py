"""Distributes a cluster's GPUs and cores over the hosts of a plan, and reports what a host lacks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fewshard_serve.errors import StartError
from fewshard_serve.rayserve.deployment_plan import GATEWAY_CPUS, AppSpec, HostSpec


def share_gpus(hosts: list[HostSpec], num_gpus: float) -> list[HostSpec]:
    """Give every replica that may use a GPU its share of the GPUs.

    If there are fewer GPUs than replicas they are shared equally, so that no replica waits for a GPU that
    never comes. Shards do not share: each one gets a whole GPU, and waits for it. Raises `StartError` if a
    model requires `cuda` and there is no GPU.
    """
    if num_gpus == 0:
        for host in hosts:
            if host.needs_gpu and host.num_shards == 1:
                names = ", ".join(model.name for model in host.models)
                raise StartError(f"{names} asks for device cuda, but Ray sees no GPU; use device: auto")
        return [replace(host, num_gpus=1.0) if host.needs_gpu else host for host in hosts]
    whole = sum(host.max_replicas * host.num_shards for host in hosts if _wants_whole_gpus(host))
    wanting = sum(host.max_replicas for host in hosts if host.may_use_gpu and not _wants_whole_gpus(host))
    share = min(1.0, math.floor(100 * max(num_gpus - whole, 0) / max(wanting, 1)) / 100)
    return [replace(host, num_gpus=_gpus_of(host, share)) for host in hosts]


def share_cores(hosts: list[HostSpec], num_nodes: int) -> list[HostSpec]:
    """Set how many processes will compute on each host's machine if they are spread evenly."""
    num_processes = sum(host.max_replicas * host.num_shards for host in hosts)
    return [replace(host, num_neighbours=-(-num_processes // num_nodes)) for host in hosts]


def reserve_gpus(hosts: Sequence[HostSpec]) -> list[HostSpec]:
    """Reserve one GPU for each process of the models that require `cuda`, whatever the cluster has now.

    For clusters that add nodes on demand, where GPUs cannot be shared out beforehand.
    """
    return [replace(host, num_gpus=1.0) if host.needs_gpu else host for host in hosts]


def what_is_missing(host: AppSpec, resources: Mapping[str, float]) -> str:
    """Return what a cluster with these `resources` ("CPU", "GPU") lacks for a host; "" if nothing."""
    num_processes = host.min_replicas * host.num_shards
    wanted = {"GPU": host.num_gpus * num_processes, "CPU": host.num_cpus * num_processes}
    lacking = [
        f"{count:g} {what}s, and the cluster has {resources.get(what, 0):g}"
        for what, count in wanted.items()
        if count > resources.get(what, 0)
    ]
    return f"waiting: it needs {' and '.join(lacking)}; add nodes or ask for fewer shards" if lacking else ""


def _wants_whole_gpus(host: HostSpec) -> bool:
    return host.may_use_gpu and host.num_shards > 1


def _gpus_of(host: HostSpec, share: float) -> float:
    if not host.may_use_gpu:
        return host.num_gpus
    return 1.0 if _wants_whole_gpus(host) else share


def num_cpus_wanted(apps: Sequence[AppSpec]) -> int:
    """Return the CPUs, as Ray counts them, that all replicas need to be scheduled."""
    return math.ceil(GATEWAY_CPUS + sum(app.num_cpus * app.max_replicas * app.num_shards for app in apps))
