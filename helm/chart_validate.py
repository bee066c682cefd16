"""Validates rendered charts: schemas of Kubernetes, KubeRay and Ray Serve, and security.

Each function yields complaints as text. The tests and `chart_check` use them.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cel
import jsonschema
import kubernetes_validate
import yaml

from chart_render import Manifest, of_kind, pod_templates, serve_config_of, the_service
from fewshard_serve.config import FewshardConfig
from fewshard_serve.errors import ConfigError
from fewshard_serve.rayserve.serve_config import AppArguments, check_serve_config, serve_config

KUBERNETES = "1.34"
CORE = ("v1", "apps/v1", "batch/v1", "networking.k8s.io/v1", "policy/v1")
CRD_VARIABLE = "FEWSHARD_KUBERAY_CRD"
"""The variable with the path of KubeRay's RayService CRD (YAML). Without it, that check is skipped."""
MAX_NAME = 47


def complaints(manifests: list[Manifest], values: Mapping[str, Any]) -> list[str]:
    """Return the complaints of all checks. `values` are the chart's complete values."""
    found = [*of_core_kinds(manifests), *of_serve_config(manifests, values), *of_kuberay(manifests)]
    found += of_security(manifests)
    crd = crd_schema()
    return found if crd is None else [*found, *of_crd(manifests, crd)]


def of_core_kinds(manifests: list[Manifest]) -> Iterator[str]:
    """Check against Kubernetes' schemas, without unknown fields. Ray pods are checked as pods."""
    objects = [manifest for manifest in manifests if manifest.get("apiVersion") in CORE]
    for name, template in pod_templates(manifests).items():
        metadata = {"name": name.replace(" ", "-"), **template["metadata"]}
        objects.append({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
    for one in objects:
        try:
            kubernetes_validate.validate(one, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{one['kind']} {one['metadata']['name']}: {error.message}"


def crd_schema() -> dict[str, Any] | None:
    """Return the schema of RayService v1 without unknown fields; None if the CRD is not available."""
    path = os.environ.get(CRD_VARIABLE)
    if not path:
        return None
    crd = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    (version,) = (one for one in crd["spec"]["versions"] if one["name"] == "v1")
    return _closed(version["schema"]["openAPIV3Schema"])


def _closed(schema: Any) -> Any:
    """Convert a structural schema to JSON Schema: closed objects, and integers that may be strings."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    is_object = isinstance(schema.get("properties"), dict) and isinstance(schema.get("type"), str)
    if is_object and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string"):
        closed.pop("type", None)
    return closed


def of_crd(manifests: list[Manifest], schema: dict[str, Any]) -> Iterator[str]:
    """Check against KubeRay's CRD, including its CEL rules."""
    service = the_service(manifests)
    for error in jsonschema.Draft202012Validator(schema).iter_errors(service):
        yield f"RayService {'.'.join(map(str, error.absolute_path))}: {error.message}"
    yield from broken_rules(schema, service)


def broken_rules(schema: Mapping[str, Any], value: Any, at: str = "") -> Iterator[str]:
    """Yield each `x-kubernetes-validations` rule that `value` breaks, with an unchanged old value."""
    for rule in schema.get("x-kubernetes-validations", ()):
        if cel.evaluate(rule["rule"], {"self": value, "oldSelf": value}) is not True:
            yield f"{at}: {rule['message']}"
    if isinstance(value, Mapping):
        for key, part in value.items():
            inner = schema.get("properties", {}).get(key) or schema.get("additionalProperties")
            if isinstance(inner, Mapping):
                yield from broken_rules(inner, part, f"{at}.{key}")
    if isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        for number, part in enumerate(value):
            yield from broken_rules(schema["items"], part, f"{at}[{number}]")


def of_kuberay(manifests: list[Manifest]) -> Iterator[str]:
    """Check what KubeRay's operator refuses although its schema permits it."""
    service = the_service(manifests)
    cluster, name = service["spec"]["rayClusterConfig"], service["metadata"]["name"]
    if len(name) > MAX_NAME:
        yield f"the name {name} has more than {MAX_NAME} letters"
    if "name" in cluster["headGroupSpec"].get("headService", {}).get("metadata", {}):
        yield "headService.metadata.name is set: upgrades would hang"
    if "upgradeStrategy" in cluster:
        yield "rayClusterConfig.upgradeStrategy is not for a RayService"
    if service["spec"]["upgradeStrategy"]["type"] == "NewClusterWithIncrementalUpgrade":
        options = service["spec"]["upgradeStrategy"]["clusterUpgradeOptions"]
        if not cluster["enableInTreeAutoscaling"] or options["stepSizePercent"] > options["maxSurgePercent"]:
            yield "an incremental upgrade needs the autoscaler, and steps that are not above the surge"
    for group in cluster["workerGroupSpecs"]:
        if not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
            yield f"group {group['groupName']}: replicas is not between minReplicas and maxReplicas"
        if group["template"]["spec"].get("restartPolicy", "Never") != "Never":
            yield f"group {group['groupName']}: the autoscaler needs restartPolicy Never"


def of_serve_config(manifests: list[Manifest], values: Mapping[str, Any]) -> Iterator[str]:
    """Check against Ray's schema and ours, and that the applications equal those of `fewshard render`."""
    config = serve_config_of(manifests)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(config, file)
        file.flush()
        try:
            check_serve_config(Path(file.name))
        except ConfigError as error:
            yield f"serveConfigV2: {error}"
            return
    ours = serve_config(FewshardConfig.model_validate(server_config(values)))
    if comparable(config) != comparable(ours):
        yield "serveConfigV2 is not what `fewshard render` makes of the same models"


def server_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fewshard.yaml that corresponds to the chart's values."""
    sections = ("models", "cascades", "limits", "logging", "metrics")
    config: dict[str, Any] = {key: values[key] for key in sections}
    config |= {key: values[key] for key in ("cors", "tracing") if values[key]}
    if callers := callers_of(values):
        config["callers"] = callers
    if values["auth"]["enabled"]:
        config["auth"] = {"tokens_file": f"/etc/fewshard/auth/{values['auth']['key']}"}
    return {**config, "server": {"host": "0.0.0.0", "port": 8000, "grpc_port": 0}}


def callers_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section `callers`: without tokens, it also has the names of the ways in."""
    ways = [] if values["auth"]["enabled"] else [("ingress", "hosts"), ("httpRoute", "hostnames")]
    names = [name for way, key in ways if values[way]["enabled"] for name in values[way][key]]
    hosts = [*values["callers"].get("hosts", ()), *(name for name in names if not name.startswith("*."))]
    return {**values["callers"], **({"hosts": list(dict.fromkeys(hosts))} if hosts else {})}


def comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return applications by name with parsed arguments, so that omitted ones equal defaults."""
    apps = {
        app["name"]: (app["route_prefix"], app["import_path"], AppArguments.model_validate(app["args"]))
        for app in config["applications"]
    }
    http = {key: config["http_options"][key] for key in ("host", "port")}
    return {"applications": apps, "http_options": http, "logging": config["logging_config"]}


def of_security(manifests: list[Manifest]) -> Iterator[str]:
    """Check every pod and container: the restricted Pod Security Standard, and our own rules."""
    for name, pod in pod_templates(manifests).items():
        spec = pod["spec"]
        for text, holds in _of_pod(name, spec).items():
            if not holds:
                yield f"{name}: {text}"
        for container in (*spec["containers"], *spec.get("initContainers", ())):
            for text, holds in _of_container(container).items():
                if not holds:
                    yield f"{name}, {container['name']}: {text}"
    for secret in of_kind(manifests, "Secret"):
        yield f"Secret {secret['metadata']['name']}: secrets are referred to, never made"


def _of_pod(name: str, spec: Mapping[str, Any]) -> dict[str, bool]:
    context = spec.get("securityContext", {})
    return {
        "must not run as root": context.get("runAsNonRoot") is True and context.get("runAsUser", 0) > 0,
        "needs seccomp": context.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
        "must not use the node's namespaces": not any(
            spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")
        ),
        "must not mount the node's files": all("hostPath" not in one for one in spec.get("volumes", ())),
        "must not fill the node's disk": all(
            "sizeLimit" in one["emptyDir"] for one in spec.get("volumes", ()) if "emptyDir" in one
        ),
        "only the head may hold a token of its ServiceAccount": name == "head"
        or spec.get("automountServiceAccountToken") is False,
    }


def _of_container(container: Mapping[str, Any]) -> dict[str, bool]:
    context = container.get("securityContext", {})
    resources = container.get("resources", {})
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    gpus = any(key.endswith("/gpu") for key in limits)
    hidden = {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} in container.get("env", ())
    return {
        "privileges must not grow": context.get("allowPrivilegeEscalation") is False,
        "the root file system must be read-only": context.get("readOnlyRootFilesystem") is True,
        "capabilities must be dropped": context.get("capabilities", {}).get("drop") == ["ALL"],
        "must not be privileged": not context.get("privileged", False),
        "memory must be limited to what is asked for": limits.get("memory")
        and limits["memory"] == requests.get("memory"),
        "a Ray pod without GPUs must see none": not container["name"].startswith("ray-") or hidden != gpus,
    }
