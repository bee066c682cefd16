"""The checks of the chart see what they are for: each is given something wrong."""

import copy

import pytest
import yaml

import chart_validate
from chart_render import of_kind, pod_templates, serve_config_of, the_service


@pytest.fixture
def manifests(render):
    return copy.deepcopy(render({}))


def cluster_of(manifests):
    return the_service(manifests)["spec"]["rayClusterConfig"]


def worker_of(manifests):
    return pod_templates(manifests)["workers cpu"]["spec"]


def test_kubernetes_schemas_refuse_types_and_unknown_fields(manifests):
    assert list(chart_validate.of_core_kinds(manifests)) == []
    worker_of(manifests)["containers"][0]["ports"][0]["containerPort"] = "8000"
    of_kind(manifests, "NetworkPolicy")[0]["spec"]["ingres"] = []
    found = "\n".join(chart_validate.of_core_kinds(manifests))
    assert "Pod workers-cpu" in found
    assert "'ingres' was unexpected" in found


def test_the_crd_refuses_types_and_unknown_fields(manifests, crd):
    cluster_of(manifests)["rayVerson"] = "2"
    worker_of(manifests)["containers"][0]["imagePulPolicy"] = "x"
    cluster_of(manifests)["headGroupSpec"]["rayStartParams"]["num-cpus"] = 0
    found = "\n".join(chart_validate.of_crd(manifests, crd))
    assert "'rayVerson' was unexpected" in found
    assert "'imagePulPolicy' was unexpected" in found
    assert "0 is not of type 'string'" in found


def test_the_rules_of_the_crd_are_evaluated(manifests, crd):
    the_service(manifests)["spec"]["managedBy"] = "ray.io/kuberay-operator"
    assert list(chart_validate.of_crd(manifests, crd)) == []
    the_service(manifests)["spec"]["managedBy"] = "somebody"
    (found,) = chart_validate.of_crd(manifests, crd)
    assert found.startswith(".spec.managedBy: the managedBy field value must be either")


def test_what_the_operator_refuses(manifests):
    service = the_service(manifests)
    service["metadata"]["name"] = "a" * 48
    cluster = cluster_of(manifests)
    cluster["headGroupSpec"]["headService"] = {"metadata": {"name": "x"}}
    cluster["upgradeStrategy"] = {"type": "Recreate"}
    cluster["workerGroupSpecs"][0]["replicas"] = 99
    cluster["workerGroupSpecs"][0]["template"]["spec"]["restartPolicy"] = "Always"
    assert len(list(chart_validate.of_kuberay(manifests))) == 5


def with_config(manifests, change):
    config = serve_config_of(manifests)
    change(config)
    the_service(manifests)["spec"]["serveConfigV2"] = yaml.safe_dump(config)
    return manifests


def test_a_serve_config_that_is_not_ours(manifests, renderer):
    values = renderer.all_values({})
    for change, message in (
        (lambda config: config.update(proxy_locatio=""), "unknown key 'proxy_locatio'"),
        (lambda config: config["applications"].pop(0), "is not what `fewshard render` makes"),
        (lambda config: config["http_options"].update(port=9), "is not what `fewshard render` makes"),
    ):
        (found,) = chart_validate.of_serve_config(with_config(copy.deepcopy(manifests), change), values)
        assert message in found


SPOILED = {
    "must not run as root": lambda spec: spec["securityContext"].update(runAsUser=0),
    "needs seccomp": lambda spec: spec["securityContext"].pop("seccompProfile"),
    "must not use the node's namespaces": lambda spec: spec.update(hostNetwork=True),
    "must not mount the node's files": lambda spec: spec["volumes"].append({"hostPath": {}}),
    "must not fill the node's disk": lambda spec: spec["volumes"][0].update(emptyDir={}),
    "root file system must be read-only": lambda spec: spec["containers"][0]["securityContext"].update(
        readOnlyRootFilesystem=False
    ),
    "only the head may hold a token": lambda spec: spec.update(automountServiceAccountToken=True),
    "privileges must not grow": lambda spec: spec["containers"][0]["securityContext"].clear(),
    "capabilities must be dropped": lambda spec: spec["containers"][0]["securityContext"].pop("capabilities"),
    "must not be privileged": lambda spec: spec["containers"][0]["securityContext"].update(privileged=True),
    "memory must be limited": lambda spec: spec["containers"][0]["resources"]["limits"].update(memory="1Ti"),
    "must see none": lambda spec: spec["containers"][0].update(env=[]),
}


@pytest.mark.parametrize("message", SPOILED)
def test_an_unsafe_pod_is_seen(manifests, message):
    assert list(chart_validate.of_security(manifests)) == []
    SPOILED[message](worker_of(manifests))
    assert any(message in found for found in chart_validate.of_security(manifests))
