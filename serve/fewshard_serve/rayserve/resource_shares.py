"""Shares the GPUs and cores of a cluster out among the hosts of a plan, and says what a host lacks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fewshard_serve.errors import StartError
from fewshard_serve.rayserve.deployment_plan import GATEWAY_CPUS, AppSpec, HostSpec


def share_gpus(hosts: list[HostSpec], num_gpus: float) -> list[HostSpec]:
    """Give every replica that may use a GPU its share of those there are.

    Raises `StartError` where a model asks for `cuda` and there is none. Fewer GPUs than replicas are shared
    in equal parts, so that nothing waits for a GPU that never comes. Not by shards: each gets a GPU of its
    own, and waits for it.
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
    """Tell every host how many processes will compute on its machine, were they spread evenly."""
    num_processes = sum(host.max_replicas * host.num_shards for host in hosts)
    return [replace(host, num_neighbours=-(-num_processes // num_nodes)) for host in hosts]


def reserve_gpus(hosts: Sequence[HostSpec]) -> list[HostSpec]:
    """One GPU for each process of the models that ask for `cuda`, whatever the cluster has at this moment.

    For clusters whose nodes come when they are asked for: there nothing can be shared out beforehand.
    """
    return [replace(host, num_gpus=1.0) if host.needs_gpu else host for host in hosts]


def what_is_missing(host: AppSpec, resources: Mapping[str, float]) -> str:
    """What a cluster of these `resources` ("CPU", "GPU") lacks for this host; "" where it has enough."""
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
    """CPUs, in Ray's counting, without which some replica would never be placed."""
    return math.ceil(GATEWAY_CPUS + sum(app.num_cpus * app.max_replicas * app.num_shards for app in apps))
