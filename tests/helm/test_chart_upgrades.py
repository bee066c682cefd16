"""Which change starts a new Ray cluster and which does not, judged as KubeRay does.

KubeRay compares `rayClusterConfig` but for the number of workers; a change of `serveConfigV2` alone is handed
to the running cluster.
"""

import copy
import shutil

import pytest

from chart_render import CHART, Renderer, serve_config_of, the_service

UNCOMPARED = ("replicas", "minReplicas", "maxReplicas")
MODELS = [{"name": "a", "path": "zoo:a"}, {"name": "b", "path": "zoo:b", "replicas": {"min": 1, "max": 4}}]


def compared(manifests):
    cluster = copy.deepcopy(the_service(manifests)["spec"]["rayClusterConfig"])
    for group in cluster["workerGroupSpecs"]:
        for key in UNCOMPARED:
            group.pop(key)
    return cluster


IN_PLACE = {
    "another model": {"models": [*MODELS, {"name": "c", "path": "zoo:c"}]},
    "other limits": {"limits": {"max_items": 7}},
    "another log": {"logging": {"format": "text"}},
    "more replicas": {"models": [MODELS[0], {**MODELS[1], "replicas": {"min": 2, "max": 9}}]},
    "a cascade": {"cascades": [{"name": "c", "stages": ["a", "b"], "accept_above": 0.5}]},
    "options of a deployment": {"serve": {"deployments": {"gateway": {"num_replicas": 2}}}},
    "labels of everything": {"commonLabels": {"team": "search"}},
    "annotations of everything": {"commonAnnotations": {"a": "b"}},
    "an ingress": {"ingress": {"enabled": True, "hosts": ["h"]}},
    "monitoring": {"monitoring": {"podMonitor": {"enabled": True}}},
    "network policies": {"networkPolicy": {"enabled": False}},
    "the strategy": {"upgrade": {"strategy": "None"}},
    "how many workers": {"workerGroups": {"cpu": {"minReplicas": 2, "maxReplicas": 9}}},
    "the test": {"tests": {"text": "another"}},
}
NEW_CLUSTER = {
    "the image": {"image": {"tag": "9.9.9"}},
    "Ray": {"rayVersion": "2.61.0"},
    "memory of workers": {"workerGroups": {"cpu": {"resources": {"limits": {"memory": "9Gi"}}}}},
    "a variable": {"env": [{"name": "A", "value": "b"}]},
    "tokens asked for": {"auth": {"enabled": True, "existingSecret": "s"}},
    "Redis": {"redis": {"enabled": True, "address": "redis://r", "existingSecret": "s"}},
    "Ray's token": {"rayAuth": {"enabled": False}},
    "the autoscaler": {"autoscaling": {"enabled": False}},
    "the grace period": {"terminationGracePeriodSeconds": 90},
}


@pytest.mark.parametrize("change", IN_PLACE)
def test_changed_in_place(render, change):
    before, after = render({"models": MODELS}), render({"models": MODELS, **IN_PLACE[change]})
    assert compared(before) == compared(after)
    assert before != after, "the change does nothing at all"


@pytest.mark.parametrize("change", NEW_CLUSTER)
def test_needs_a_new_cluster(render, change):
    before, after = render({"models": MODELS}), render({"models": MODELS, **NEW_CLUSTER[change]})
    assert compared(before) != compared(after)


def test_a_model_that_changes_leaves_the_others_alone(render):
    changed = [MODELS[0], {**MODELS[1], "batching": {"max_items": 9}}]
    before = {app["name"]: app for app in serve_config_of(render({"models": MODELS}))["applications"]}
    after = {app["name"]: app for app in serve_config_of(render({"models": changed}))["applications"]}
    assert {name for name in before if before[name] != after[name]} == {"model-b"}


def test_rendering_twice_gives_the_same(render):
    assert render({}) == render({})


def test_a_new_version_of_the_chart_alone_changes_no_pod(render, tmp_path):
    newer = shutil.copytree(CHART, tmp_path / "fewshard")
    chart = (newer / "Chart.yaml").read_text()
    (newer / "Chart.yaml").write_text(chart.replace("\nversion: 0.", "\nversion: 99."))
    before, after = render({}), Renderer(newer).render({})
    assert before != after
    assert compared(before) == compared(after)
