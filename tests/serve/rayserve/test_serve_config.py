"""A configuration as Ray Serve's: each application gets its part, and finds the plan `fewshard serve` has."""

from pathlib import Path

import pytest
import yaml

from fewshard_serve.config import FewshardConfig
from fewshard_serve.config_file import load_config
from fewshard_serve.errors import ConfigError
from fewshard_serve.rayserve.deployment_plan import plan_cascades, plan_hosts
from fewshard_serve.rayserve.haproxy import BINARY, KEEPER_SETTINGS
from fewshard_serve.rayserve.resource_shares import reserve_gpus
from fewshard_serve.rayserve.serve_config import AppArguments, check_serve_config, serve_config

ROOT = Path(__file__).parents[3]
SOURCES = sorted(ROOT.glob("deploy/serve/*.fewshard.yaml"))
CONFIG = {
    "models": [
        {"name": "a", "path": "zoo:a", "batching": {"max_items": 7}},
        {"name": "b", "path": "zoo:b", "replicas": {"min": 1, "max": 4}},
        {
            "name": "c",
            "path": "zoo:c",
            "experts": {"shards": 2},
            "device": "cuda",
            "admission": {"max_items": 9},
        },
        {"name": "d", "path": "/models/d", "dtype": "fp32"},
    ],
    "cascades": [{"name": "auto", "stages": ["b", "a"], "accept_above": 0.9}],
    "server": {"host": "0.0.0.0", "grpc_port": 0},
    "limits": {"max_items": 100},
}


def rendered(**changes):
    return serve_config(FewshardConfig.model_validate({**CONFIG, **changes}))


def applications(config):
    return {app["name"]: app for app in config["applications"]}


def test_every_application_plans_what_the_whole_configuration_plans():
    whole = FewshardConfig.model_validate(CONFIG)
    arguments = {name: AppArguments(**app["args"]) for name, app in applications(rendered()).items()}
    gateway = arguments.pop("gateway")
    found = {name: args.find(args.plan()[0]) for name, args in arguments.items()}
    doors = gateway.plan()[1]
    hosts = reserve_gpus(plan_hosts(whole, doors=doors))
    assert {host.app: host for host in hosts}.items() <= found.items()
    assert {one.app for one in plan_cascades(whole, hosts)} == set(found) - {host.app for host in hosts}
    assert [app.app for app in gateway.plan()[0]] == list(found)
    seen = {app.app: (app.route_prefix, app.drain_timeout_s, app.num_gpus) for app in gateway.plan()[0]}
    assert seen == {
        name: (app.route_prefix, app.drain_timeout_s, app.num_gpus) for name, app in found.items()
    }
    assert found["model-c"].num_gpus == 1
    assert doors.limits.max_items == 100


def test_every_section_of_the_configuration_reaches_an_application():
    """A new one needs its place in `serveconfig`, and in the chart's values.yaml and _serve.tpl."""
    common = {"auth", "callers", "cors", "limits", "logging", "metrics", "tracing"}
    sections = {"models", "cascades", "server"} | common
    assert set(FewshardConfig.model_fields) == sections
    given = {"auth": {"tokens_file": "t"}, "callers": {}, "logging": {}, "metrics": {}}
    whole = rendered(**given, tracing={"endpoint": "http://traces"}, cors={"origins": ["*"]})
    configs = [app["args"]["config"] for app in whole["applications"]]
    assert {key for config in configs for key in config} == sections
    assert all({"models"} | common <= set(config) for config in configs)


def test_on_a_cluster_names_of_clients_are_theirs_and_those_of_browsers_are_checked():
    """An application knows neither the address nor the names of the service."""
    arguments = applications(rendered(callers={"hosts": ["a.example"]}))["gateway"]["args"]
    doors = AppArguments(**arguments).plan()[1]
    assert (doors.guards_pages, doors.is_on_loopback) == (True, False)
    assert doors.callers.hosts == ("a.example",)


def test_a_model_that_shadows_one_of_another_application_is_known_there():
    models = [*CONFIG["models"][:1], {**CONFIG["models"][1], "shadow": "a"}]
    apps = applications(rendered(models=models, cascades=[]))
    args = AppArguments(**apps["model-b"]["args"])
    spec = args.find(args.plan()[0])
    assert [model.name for model in spec.models] == ["b"]
    assert spec.models[0].shadow_app == "models"


def test_what_was_written_is_rendered_and_no_default():
    model = {
        "name": "m",
        "path": "zoo:m",
        "batching": {"max_items": 512, "max_wait_ms": "1e1"},
        "experts": {"shards": 2, "placement": "balanced"},
        "cost": {},
    }
    limits, metrics = {"max_items": 4096}, {"expert_layers": [0, 2], "experts": "each"}
    config = FewshardConfig.model_validate({"models": [model], "limits": limits, "metrics": metrics})
    written = {**model, "batching": {"max_items": 512, "max_wait_ms": 10.0}}
    (app,) = (app for app in serve_config(config)["applications"] if app["name"] == "model-m")
    assert app["args"]["config"] == {"models": [written], "limits": limits, "metrics": metrics}


def changed(before, after):
    return {name for name, app in applications(before).items() if applications(after).get(name) != app}


def test_a_change_reaches_those_alone_whom_it_concerns():
    def with_model(number, **change):
        models = [{**model, **change} if i == number else model for i, model in enumerate(CONFIG["models"])]
        return rendered(models=models)

    assert changed(rendered(), with_model(2, batching={"max_items": 3})) == {"model-c"}
    assert changed(rendered(), with_model(3, dtype="bf16")) == {"models"}
    assert changed(rendered(), with_model(1, path="zoo:e")) == {"model-b", "cascade-auto", "gateway"}
    assert changed(rendered(), rendered(limits={"max_items": 99})) == set(applications(rendered()))
    assert changed(rendered(), rendered(server={"host": "0.0.0.0", "grpc_port": 9})) == {"gateway"}


def test_an_application_that_is_not_there_is_named():
    args = AppArguments(application="modle-b", config=CONFIG)
    with pytest.raises(ConfigError, match="no application 'modle-b'; there are: gateway, models, model-b"):
        args.find(args.plan()[0])


def test_the_doors_know_whether_our_haproxy_stands_before_them(tmp_path, monkeypatch):
    args = AppArguments(application="models", config=CONFIG)
    monkeypatch.setenv(BINARY, str(tmp_path / "haproxy"))
    assert not args.plan()[1].is_behind_haproxy
    (tmp_path / KEEPER_SETTINGS).touch()
    assert args.plan()[1].is_behind_haproxy


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name)
def test_the_shipped_configurations_are_rendered_ones(source):
    shipped = source.with_name(source.name.replace(".fewshard", ""))
    assert yaml.safe_load(shipped.read_text()) == serve_config(load_config(source))
    assert check_serve_config(shipped) == len(serve_config(load_config(source))["applications"])


def test_there_are_shipped_configurations():
    assert len(SOURCES) >= 2


def deployments(*options):
    return lambda config: applications(config)["model-b"].update(deployments=list(options))


def rename(config):
    applications(config)["model-b"]["name"] = "b"


def bad_argument(config):
    applications(config)["models"]["args"]["config"]["models"][0]["bathing"] = {}


MISTAKES = [
    (
        lambda config: config.update(proxy_locatio="HeadOnly"),
        "line [0-9]+: unknown key 'proxy_locatio'.*proxy_location",
    ),
    (
        lambda config: config["http_options"].update(prt=1),
        r"unknown key 'prt' in http_options; did you mean 'port'",
    ),
    (
        lambda config: config["http_options"].update(port="x"),
        r"http_options.port: input should be a valid integer.* \(given: 'x'\)",
    ),
    (deployments({"name": "host", "num_replica": 2}), "unknown key 'num_replica'.*'num_replicas'"),
    (deployments({"name": "hots"}), "'model-b' has no deployment 'hots'; its only one is 'host'"),
    (
        deployments({"name": "host", "autoscaling_config": {"max_replica": 3}}),
        r"unknown key 'max_replica' in applications\[1\].deployments\[0\].autoscaling_config",
    ),
    (rename, "the name must be that of args.application, 'model-b'"),
    (
        bad_argument,
        r"unknown key 'bathing' in applications\[0\].args.config.models\[0\]; did you mean 'batching'",
    ),
]


@pytest.mark.parametrize(("spoil", "message"), MISTAKES)
def test_mistakes_that_ray_takes_in_silence_are_refused(tmp_path, spoil, message):
    config = rendered()
    spoil(config)
    path = tmp_path / "serve.yaml"
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match=message):
        check_serve_config(path)
