"""Every example in ci/ and values made up at random give what Kubernetes, KubeRay and Ray Serve take."""

import os
import shutil

import hypothesis
import hypothesis.strategies as st
import pytest
import yaml

import chart_validate
from chart_render import CHART, Renderer, examples, of_kind, pod_templates, serve_config_of, the_service
from chart_sync import chart_files

NUM_EXAMPLES = int(os.environ.get("FEWSHARD_FUZZ_EXAMPLES", "12"))
SERVE_PORT = {"protocol": "TCP", "port": 8000}
NAMES = ["a", "b-1", "C.c", "d_4"]


def test_there_are_examples():
    assert len(examples()) >= 7


@pytest.mark.parametrize("name", examples())
def test_every_example_is_valid(renderer, name):
    given = examples()[name]
    manifests = renderer.render(given)
    assert chart_validate.complaints(manifests, renderer.all_values(given)) == []
    assert renderer.lint(given) == []


def test_every_example_satisfies_kuberays_crd(render, crd):
    """Said apart from the above, so that it shows where the CRD is not at hand."""
    for given in examples().values():
        assert list(chart_validate.of_crd(render(given), crd)) == []


def models():
    return st.lists(
        st.fixed_dictionaries(
            {
                "name": st.sampled_from(NAMES),
                "path": st.sampled_from(["zoo:sst2-moe", "hf:a/b", "hf:a/b@v1", "/models/x"]),
            },
            optional={
                "device": st.sampled_from(["auto", "cpu"]),
                "dtype": st.sampled_from(["auto", "fp32", "bf16"]),
                "replicas": st.fixed_dictionaries(
                    {"min": st.integers(1, 3)}, optional={"max": st.integers(3, 99)}
                ),
                "experts": st.fixed_dictionaries({"shards": st.integers(1, 64)}),
                "cost": st.fixed_dictionaries({"usd_per_hour": st.floats(0, 99)}),
                "batching": st.fixed_dictionaries({"max_tokens": st.integers(1, 10_000_000)}),
                "admission": st.fixed_dictionaries({"deadline_ms": st.integers(1, 25_000)}),
            },
        ),
        min_size=1,
        max_size=4,
        unique_by=lambda model: model["name"],
    )


@st.composite
def values(draw):
    """Values that go together, as a user might have them."""
    given = {"models": draw(models()), "terminationGracePeriodSeconds": 60, "haproxyAnswerSeconds": 55}
    names = [model["name"] for model in given["models"]]
    if len(names) > 1 and draw(st.booleans()):
        given["cascades"] = [{"name": "both", "stages": names[:2], "accept_above": draw(st.floats(0, 1))}]
    if len(names) > 1 and draw(st.booleans()):
        given["models"][0]["shadow"] = draw(st.sampled_from([names[1], {"model": names[-1], "share": 0.5}]))
    given["metrics"] = draw(st.sampled_from([{}, {"max_series": 9, "expert_layers": [0]}]))
    given["tracing"] = draw(st.sampled_from([{}, {"endpoint": "http://collector:4318"}]))
    given["cors"] = draw(st.sampled_from([{}, {"origins": ["https://app.example"]}]))
    given["callers"] = draw(
        st.sampled_from([{}, {"hosts": ["a.example"], "trusted_proxies": ["10.0.0.0/8"]}])
    )
    given["ingress"] = draw(
        st.sampled_from([{}, {"enabled": True, "hosts": ["a.example", "b.example", "*.c.example"]}])
    )
    given["limits"] = draw(st.fixed_dictionaries({}, optional={"max_text_bytes": st.integers(1, 10**9)}))
    given["auth"] = draw(st.sampled_from([{}, {"enabled": True, "existingSecret": "s", "key": "t.yaml"}]))
    given["redis"] = draw(
        st.sampled_from([{}, {"enabled": True, "address": "redis://r:6379", "existingSecret": "s"}])
    )
    given["modelStorage"] = draw(
        st.sampled_from(
            [
                {},
                {"type": "claim", "existingClaim": "c"},
                {"type": "pull", "pull": {"image": "i", "args": ["x"]}},
            ]
        )
    )
    given["workerGroups"] = draw(
        st.dictionaries(
            st.sampled_from(["cpu", "gpu", "large"]),
            st.fixed_dictionaries(
                {
                    "resources": st.just(
                        {"requests": {"memory": "8Gi"}, "limits": {"cpu": 2, "memory": "8Gi"}}
                    )
                },
                optional={
                    "minReplicas": st.integers(0, 1),
                    "maxReplicas": st.integers(1, 1000),
                    "gpus": st.integers(0, 8),
                    "env": st.just([{"name": "A", "value": "b"}]),
                    "tolerations": st.just([{"operator": "Exists"}]),
                },
            ),
            max_size=3,
        )
    )
    for switch in ("autoscaling", "networkPolicy", "tests"):
        given[switch] = {"enabled": draw(st.booleans())}
    given["upgrade"] = {"strategy": draw(st.sampled_from(["NewCluster", "None"]))}
    given["monitoring"] = {draw(st.sampled_from(["scrape", "discovery"])): {"enabled": draw(st.booleans())}}
    given["commonLabels"] = draw(st.sampled_from([{}, {"team": "search"}]))
    return given


@hypothesis.settings(
    max_examples=NUM_EXAMPLES,
    deadline=None,
    derandomize="FEWSHARD_FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(values(), st.text("abz09-", min_size=1, max_size=50).map(lambda text: f"r{text}e"))
def test_values_made_up_at_random_are_valid(renderer, given, release):
    manifests = renderer.render(given, name=release)
    assert chart_validate.complaints(manifests, renderer.all_values(given)) == []


def test_what_is_made_elsewhere_is_up_to_date():
    """Run `make chart` where this fails."""
    there = {path.relative_to(CHART).as_posix() for path in CHART.glob("files/**/*") if path.is_file()}
    made = chart_files()
    assert there | {"values.schema.json"} == set(made)
    assert {name: (CHART / name).read_text() for name in made} == made


def test_rules_and_dashboards_are_those_of_deploy(render):
    made = chart_files()
    assert "files/rules.yml" in made
    manifests = render({"monitoring": {"rules": {"enabled": True}, "dashboards": {"enabled": True}}})
    (rule,) = of_kind(manifests, "PrometheusRule")
    assert rule["spec"] == yaml.safe_load(made["files/rules.yml"])
    shown = {text for one in of_kind(manifests, "ConfigMap") for text in one["data"].values()}
    wanted = {text for name, text in made.items() if name.startswith("files/dashboards/")}
    assert {text.strip() for text in shown} == {text.strip() for text in wanted}


def copy_with(files, tmp_path):
    copy = shutil.copytree(CHART, tmp_path / "fewshard")
    for name, text in files.items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text(text)
    return Renderer(copy)


def test_rules_and_dashboards_come_through_unchanged(tmp_path):
    alert = "{alert: A, expr: up == 0, annotations: {summary: '{{ $value }}'}}"
    rules = f"groups:\n- name: g\n  rules:\n  - {alert}\n"
    board = '{"title": "T", "expr": "{{model}}"}\n'
    renderer = copy_with({"files/rules.yml": rules, "files/dashboards/t.json": board}, tmp_path)
    on = {"rules": {"enabled": True}, "dashboards": {"enabled": True}, "labels": {"release": "p"}}
    manifests = renderer.render({"monitoring": on})
    (rule,) = of_kind(manifests, "PrometheusRule")
    assert rule["spec"] == yaml.safe_load(rules)
    (shown,) = [one for one in of_kind(manifests, "ConfigMap") if "fewshard-t.json" in one["data"]]
    assert shown["data"]["fewshard-t.json"] == board
    assert (
        shown["metadata"]["labels"] | {"grafana_dashboard": "1", "release": "p"}
        == shown["metadata"]["labels"]
    )


def test_names_are_cut_to_what_kuberay_allows(render):
    manifests = render({}, name="r" * 53)
    assert the_service(manifests)["metadata"]["name"] == "r" * 47


def test_one_group_can_be_taken_away(render):
    gpu = {"gpus": 1, "resources": {"requests": {"memory": "8Gi"}, "limits": {"memory": "8Gi"}}}
    assert set(
        pod_templates(render({"workerGroups": {"cpu": None, "gpu": gpu}, "tests": {"enabled": False}}))
    ) == {
        "head",
        "workers gpu",
    }


def test_the_pods_see_what_they_need(render):
    pods = pod_templates(render(examples()["production-values.yaml"]))
    for name in ("head", "workers cpu"):
        (container,) = pods[name]["spec"]["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert (
            mounts.items() >= {"auth": "/etc/fewshard/auth", "models": "/models", "shm": "/dev/shm"}.items()
        )
        env = {one["name"]: one.get("value") for one in container["env"]}
        assert env["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
        assert env["HOME"] == mounts["tmp"]
    assert (
        serve_config_of(render(examples()["production-values.yaml"]))["logging_config"]["encoding"] == "JSON"
    )


def way_out(render, values, kind):
    """The rules of egress that these values add."""

    def rules(more):
        policies = of_kind(render(more), "NetworkPolicy")
        (policy,) = [one for one in policies if one["metadata"]["name"].endswith(f"-{kind}")]
        return policy["spec"]["egress"]

    without = rules({})
    return [rule for rule in rules(values) if rule not in without]


ANYWHERE = [{"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "::/0"}}]


def in_namespace(name):
    return [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}]


@pytest.mark.parametrize(
    ("url", "to", "port"),
    [
        ("http://otel.monitoring:4318/v1/traces", in_namespace("monitoring"), 4318),
        ("http://user:secret@otel.monitoring.svc.cluster.local:4318", in_namespace("monitoring"), 4318),
        ("http://otel/v1/traces", [{"podSelector": {}}], 80),
        ("https://traces.eu.example.com/v1/traces", ANYWHERE, 443),
        ("http://10.1.2.3:4318", [{"ipBlock": {"cidr": "10.1.2.3/32"}}], 4318),
        ("http://[fd00::7]:4318", [{"ipBlock": {"cidr": "fd00::7/128"}}], 4318),
    ],
)
def test_traces_may_leave_where_they_are_sent(render, url, to, port):
    values = {"tracing": {"endpoint": url}}
    assert way_out(render, values, "worker") == [{"to": to, "ports": [{"protocol": "TCP", "port": port}]}]
    assert way_out(render, values, "head") == [], "replicas alone send traces"


def test_only_redis_itself_is_reached_at_its_ports(render):
    redis = {"enabled": True, "address": "rediss://redis.data:6380", "existingSecret": "s"}
    (rule,) = way_out(render, {"redis": redis}, "head")
    assert rule == {
        "to": in_namespace("data"),
        "ports": [{"protocol": "TCP", "port": n} for n in (6380, 6379)],
    }


def test_names_of_the_ways_in_are_known_where_no_token_is_asked_for(render):
    ingress = {"enabled": True, "hosts": ["a.example", "*.b.example"]}
    given = {"ingress": ingress, "callers": {"hosts": ["c.example"], "trusted_proxies": ["10.0.0.0/8"]}}

    def callers(values):
        return [
            app["args"]["config"].get("callers") for app in serve_config_of(render(values))["applications"]
        ]

    wanted = {"hosts": ["c.example", "a.example"], "trusted_proxies": ["10.0.0.0/8"]}
    assert callers(given) == [wanted] * 3
    with_tokens = {"auth": {"enabled": True, "existingSecret": "s"}, "ingress": ingress}
    assert callers(with_tokens) == callers({}) == [None] * 3


def test_the_autoscaler_writes_to_volumes_alone(render):
    cluster = the_service(render({}))["spec"]["rayClusterConfig"]
    autoscaler, head = cluster["autoscalerOptions"], pod_templates(render({}))["head"]["spec"]
    assert autoscaler["securityContext"]["readOnlyRootFilesystem"] is True
    limited = {one["name"] for one in head["volumes"] if "sizeLimit" in one.get("emptyDir", {})}
    assert {one["mountPath"]: one["name"] for one in autoscaler["volumeMounts"]} == {
        "/tmp": "tmp",
        "/tmp/ray": "ray-logs",
    }
    assert {"tmp", "ray-logs"} <= limited


def test_the_dashboard_is_open_to_the_operator_alone(render):
    (head,) = [
        one for one in of_kind(render({}), "NetworkPolicy") if one["metadata"]["name"].endswith("-head")
    ]
    open_to = [
        rule["from"]
        for rule in head["spec"]["ingress"]
        if any(port["port"] == 8265 for port in rule.get("ports", ()))
    ]
    assert open_to == [
        [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kuberay-system"}}}]
    ]
    ray_pods = {"podSelector": {"matchLabels": head["spec"]["podSelector"]["matchLabels"].copy()}}
    ray_pods["podSelector"]["matchLabels"].pop("ray.io/node-type")
    assert [rule["from"] for rule in head["spec"]["ingress"] if "ports" not in rule] == [[ray_pods]]


def test_the_test_may_ask_where_clients_are_named(render):
    manifests = render(examples()["production-values.yaml"])
    (worker,) = [
        one for one in of_kind(manifests, "NetworkPolicy") if one["metadata"]["name"].endswith("-worker")
    ]
    (clients,) = [rule["from"] for rule in worker["spec"]["ingress"] if rule.get("ports") == [SERVE_PORT]]
    labels = of_kind(manifests, "Pod")[0]["metadata"]["labels"]
    assert clients[0] == {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress-nginx"}}
    }
    assert clients[-1]["podSelector"]["matchLabels"].items() <= labels.items()


def test_selectors_find_the_pods(render):
    manifests = render(examples()["production-values.yaml"])
    pods = pod_templates(manifests)
    by_kuberay = {"ray.io/is-ray-node": "yes"}
    for one in (*of_kind(manifests, "NetworkPolicy"), *of_kind(manifests, "PodDisruptionBudget")):
        selector = one["spec"].get("podSelector") or one["spec"]["selector"]
        kind = selector["matchLabels"]["ray.io/node-type"]
        pod = pods["head" if kind == "head" else "workers cpu"]
        labels = {**pod["metadata"]["labels"], **by_kuberay, "ray.io/node-type": kind}
        assert selector["matchLabels"].items() <= labels.items()
        assert "app.kubernetes.io/name" not in labels
