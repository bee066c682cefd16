"""Wrong values fail when the chart is rendered, with a message that names the key."""

import pytest
from helm_python import HelmError

RESOURCES = {"requests": {"memory": "8Gi"}, "limits": {"memory": "8Gi"}}
INCREMENTAL = {"strategy": "NewClusterWithIncrementalUpgrade", "gatewayClassName": "istio"}
MODEL = {"name": "a", "path": "zoo:a"}
CASES = {
    "unknown key": ({"modls": []}, "modls"),
    "unknown key of a model": ({"models": [{**MODEL, "bathing": {}}]}, "/models/0.*bathing"),
    "unknown key of a section": ({"models": [{**MODEL, "batching": {"max_item": 1}}]}, "batching.*max_item"),
    "unknown key of a group": (
        {"workerGroups": {"gpu": {"gpu": 1, "resources": RESOURCES}}},
        "workerGroups/gpu/gpu",
    ),
    "group without resources": ({"workerGroups": {"gpu": {"gpus": 1}}}, "workerGroups/gpu.*resources"),
    "no model": ({"models": []}, "/models"),
    "a model's name twice": ({"models": [MODEL, MODEL]}, r"models\[1\].name"),
    "a model's name from a URL": ({"models": [{**MODEL, "name": "stats"}]}, "/models/0/name"),
    "a model's name with a slash": ({"models": [{**MODEL, "name": "a/b"}]}, "/models/0/name"),
    "a relative directory": ({"models": [{**MODEL, "path": "./here"}]}, "/models/0/path"),
    "a device that is none": ({"models": [{**MODEL, "device": "gpu"}]}, "/models/0/device"),
    "no shards": ({"models": [{**MODEL, "experts": {"shards": 0}}]}, "/models/0/experts"),
    "text for a number": ({"models": [{**MODEL, "replicas": {"min": "2"}}]}, "/models/0/replicas"),
    "a limit below one": ({"limits": {"max_items": 0}}, "/limits/max_items"),
    "a log of no kind": ({"logging": {"format": "xml"}}, "/logging/format"),
    "GPU shards without a GPU group": (
        {"models": [{**MODEL, "device": "cuda", "experts": {"shards": 4}}]},
        r"models\[0\].device: a asks for cuda, but no group of workerGroups has gpus",
    ),
    "a stage that is no model": (
        {"models": [MODEL], "cascades": [{"name": "c", "stages": ["a", "z"], "accept_above": 0.5}]},
        r"cascades\[0\].stages.*z",
    ),
    "a cascade called like a model": (
        {"models": [MODEL], "cascades": [{"name": "a", "stages": ["a", "a"], "accept_above": 0.5}]},
        r"cascades\[0\].name",
    ),
    "a name too long": ({"fullnameOverride": "a" * 48}, "/fullnameOverride"),
    "a name that is none": ({"fullnameOverride": "1st"}, "/fullnameOverride"),
    "a strategy that is none": ({"upgrade": {"strategy": "BlueGreen"}}, "/upgrade/strategy"),
    "incremental without the autoscaler": (
        {"upgrade": INCREMENTAL, "autoscaling": {"enabled": False}},
        "autoscaling.enabled",
    ),
    "incremental without a gateway": (
        {"upgrade": {**INCREMENTAL, "gatewayClassName": ""}},
        "upgrade.gatewayClassName",
    ),
    "incremental steps above the surge": (
        {"upgrade": {**INCREMENTAL, "stepSizePercent": 60, "maxSurgePercent": 50}},
        "upgrade.stepSizePercent",
    ),
    "incremental and an ingress": (
        {"upgrade": INCREMENTAL, "ingress": {"enabled": True, "hosts": ["a"]}},
        "upgrade.strategy.*ingress.enabled",
    ),
    "two kinds of ingress": (
        {
            "ingress": {"enabled": True, "hosts": ["a"]},
            "httpRoute": {"enabled": True, "parentRefs": [{"name": "g"}]},
        },
        "httpRoute.enabled: ingress.enabled is on too",
    ),
    "an ingress without hosts": ({"ingress": {"enabled": True}}, "ingress.hosts"),
    "a route without a gateway": ({"httpRoute": {"enabled": True}}, "httpRoute.parentRefs"),
    "both kinds of scrape": (
        {"monitoring": {"scrape": {"enabled": True}, "discovery": {"enabled": True}}},
        "monitoring.discovery.enabled: monitoring.scrape.enabled is on too",
    ),
    "auth without a secret": ({"auth": {"enabled": True}}, "auth.existingSecret"),
    "redis without an address": ({"redis": {"enabled": True, "existingSecret": "s"}}, "redis.address"),
    "redis without a secret": ({"redis": {"enabled": True, "address": "redis://r"}}, "redis.existingSecret"),
    "an address of no Redis": ({"redis": {"address": "r:6379"}}, "/redis/address"),
    "a password in Redis' address": ({"redis": {"address": "redis://:secret@r:6379"}}, "/redis/address"),
    "a revision that is empty": ({"models": [{**MODEL, "path": "hf:a/b@"}]}, "/models/0/path"),
    "a host with a port": ({"callers": {"hosts": ["a.example:80"]}}, "/callers/hosts/0"),
    "an unknown key of callers": ({"callers": {"host": []}}, "/callers.*host"),
    "a claim without a name": ({"modelStorage": {"type": "claim"}}, "modelStorage.existingClaim"),
    "a pull without an image": ({"modelStorage": {"type": "pull"}}, "modelStorage.pull.image"),
    "a grace period too short": (
        {"terminationGracePeriodSeconds": 44},
        "terminationGracePeriodSeconds.* make 45",
    ),
    "a deadline too long": (
        {"models": [{**MODEL, "admission": {"deadline_ms": 60_000}}]},
        "terminationGracePeriodSeconds.* make 95",
    ),
    "a proxy that gives up too soon": (
        {"haproxyAnswerSeconds": 14},
        "haproxyAnswerSeconds.* make 15",
    ),
    "more at rest than at most": (
        {"workerGroups": {"cpu": {"minReplicas": 9}}},
        "workerGroups.cpu.minReplicas: 9 is above maxReplicas, 4",
    ),
    "a group's name": ({"workerGroups": {"GPU": {"resources": RESOURCES}}}, "invalid propertyName 'GPU'"),
    "an amount of memory": ({"cache": {"sizeLimit": "10 GB"}}, "/cache/sizeLimit"),
    "a port": ({"networkPolicy": {"redisPort": 70000}}, "/networkPolicy/redisPort"),
    "an unknown option of a deployment": (
        {"serve": {"deployments": {"models": {"num_replica": 2}}}},
        "num_replica",
    ),
    "an application that is none": ({"serve": {"deployments": {"host": {}}}}, "invalid propertyName 'host'"),
    "a deployment's own name": (
        {"serve": {"deployments": {"models": {"name": "x"}}}},
        "deployments.*(name|models)",
    ),
    "rules that are not there": ({"monitoring": {"rules": {"enabled": "yes"}}}, "/monitoring/rules/enabled"),
    "a label that is a number": ({"commonLabels": {"team": 7}}, "/commonLabels/team"),
}


@pytest.mark.parametrize("case", CASES)
def test_wrong_values_are_refused_by_their_key(render, case):
    values, message = CASES[case]
    with pytest.raises(HelmError, match=f"(?s){message}"):
        render(values)


def test_global_values_of_a_parent_chart_are_let_through(render):
    assert render({"global": {"anything": 1}})
