"""The plan of hosts is a pure function of the configuration."""

import pytest

from fewshard_serve.config import FewshardConfig
from fewshard_serve.errors import StartError
from fewshard_serve.rayserve.deployment_plan import plan_hosts
from fewshard_serve.rayserve.resource_shares import num_cpus_wanted, share_gpus, what_is_missing


def plan(*models):
    return plan_hosts(FewshardConfig.model_validate({"models": models}))


def test_models_without_wishes_share_one_host():
    (host,) = plan({"name": "a", "path": "x"}, {"name": "b", "path": "y", "dtype": "fp32"})
    assert (host.app, host.route_prefix) == ("models", "/v2/models")
    assert [(model.name, model.path, model.dtype) for model in host.models] == [
        ("a", "x", "auto"),
        ("b", "y", "fp32"),
    ]


def test_replicas_or_a_gpu_make_a_host_of_their_own():
    shared, many, gpu = plan(
        {"name": "many", "path": "x", "replicas": {"min": 2, "max": 5}},
        {"name": "plain", "path": "x"},
        {"name": "gpu", "path": "x", "device": "cuda"},
    )
    assert [model.name for model in shared.models] == ["plain"]
    assert (many.route_prefix, many.min_replicas, many.max_replicas) == ("/v2/models/many", 2, 5)
    assert (gpu.route_prefix, gpu.min_replicas, gpu.max_replicas) == ("/v2/models/gpu", 1, 1)
    assert len({shared.app, many.app, gpu.app}) == 3


def test_no_shared_host_where_nothing_shares():
    (host,) = plan({"name": "a", "path": "x", "replicas": {"min": 1}})
    assert host.route_prefix == "/v2/models/a"


def test_limits_reach_the_engine_and_the_drain():
    admission = {"max_items": 7, "deadline_ms": 2500}
    models = (
        {"name": "a", "path": "x", "batching": {"max_items": 3}, "admission": admission},
        {"name": "b", "path": "x", "admission": {"deadline_ms": 500}},
    )
    config = FewshardConfig.model_validate({"models": models})
    (host,) = plan_hosts(config)
    settings = host.models[0].settings
    assert settings.batching is config.models[0].batching
    assert settings.admission is config.models[0].admission
    assert (settings.batching.max_items, settings.admission.max_items) == (3, 7)
    assert host.deadline_s == 2.5
    assert host.drain_timeout_s > host.deadline_s


def test_every_replica_at_its_most_finds_a_cpu():
    hosts = plan(*({"name": f"m{n}", "path": "x", "replicas": {"min": 1, "max": 3}} for n in range(4)))
    assert num_cpus_wanted(hosts) >= 0.5 * 12


def test_gpus_are_shared_when_there_are_too_few():
    hosts = plan(
        {"name": "a", "path": "x", "device": "cuda"},
        {"name": "b", "path": "x", "replicas": {"min": 2, "max": 2}},
        {"name": "c", "path": "x", "device": "cpu"},
    )
    shares = {host.app: host.num_gpus for host in share_gpus(hosts, 2)}
    assert shares == {"models": 0.0, "model-a": 0.66, "model-b": 0.66}
    assert sum(host.num_gpus * host.max_replicas for host in share_gpus(hosts, 2)) <= 2
    assert {host.num_gpus for host in share_gpus(hosts, 8)} == {0.0, 1.0}


def test_no_gpu_is_an_error_only_for_those_who_insist():
    with pytest.raises(StartError, match="a asks for device cuda"):
        share_gpus(plan({"name": "a", "path": "x", "device": "cuda"}), 0)
    (host,) = share_gpus(plan({"name": "a", "path": "x"}), 0)
    assert host.num_gpus == 0


SHARDED = {"name": "s", "path": "x", "experts": {"shards": 4}}


def test_shards_make_a_host_of_their_own_with_a_cpu_each():
    shared, sharded = plan({"name": "a", "path": "x"}, SHARDED)
    assert (shared.num_shards, sharded.num_shards, sharded.app) == (1, 4, "model-s")
    assert sharded.experts.shards == 4
    assert num_cpus_wanted([sharded]) - num_cpus_wanted([shared]) >= 1


def test_each_shard_has_a_gpu_of_its_own_and_the_others_share_the_rest():
    hosts = plan({"name": "a", "path": "x"}, {"name": "b", "path": "x", "replicas": {"min": 1}}, SHARDED)
    shares = {host.app: host.num_gpus for host in share_gpus(hosts, 5)}
    assert shares == {"models": 0.5, "model-b": 0.5, "model-s": 1.0}
    assert {host.num_gpus for host in share_gpus(plan(SHARDED), 0)} == {0.0}


def test_a_cluster_without_enough_gpus_is_waited_for():
    (host,) = share_gpus(plan({**SHARDED, "device": "cuda", "replicas": {"min": 2}}), 3)
    assert what_is_missing(host, {"CPU": 64, "GPU": 3}) == (
        "waiting: it needs 8 GPUs, and the cluster has 3; add nodes or ask for fewer shards"
    )
    assert what_is_missing(host, {"CPU": 64, "GPU": 8}) == ""
    assert "4 CPUs, and the cluster has 2" in what_is_missing(host, {"CPU": 2, "GPU": 8})
    (none_yet,) = share_gpus(plan({**SHARDED, "device": "cuda"}), 0)
    assert "4 GPUs, and the cluster has 0" in what_is_missing(none_yet, {"CPU": 64})
