"""A changed configuration: what is deployed anew, what is refused, and what a failure leaves."""

import sys
import threading
import types

import pytest

from fewshard_serve.config import FewshardConfig
from fewshard_serve.errors import ConfigError
from fewshard_serve.http.service import ModelEntry
from fewshard_serve.rayserve.deployment_plan import plan_cascades, plan_hosts
from fewshard_serve.rayserve.rolling_update import FIXED, ILL_S, TRIAL_S, Updater, show_nobody
from fewshard_serve.rayserve.serve_deployer import CALL_TIMEOUT_S, ServeDeployer, UpdateFailed
from fewshard_serve.rayserve.signals import CallThread

MODELS = {
    "a": {"name": "a", "path": "zoo:a"},
    "b": {"name": "b", "path": "zoo:b"},
    "own": {"name": "own", "path": "zoo:own", "replicas": {"min": 2}},
}


def config(server=None, **changed):
    models = [{**model, **changed.get(name, {})} for name, model in MODELS.items()]
    return FewshardConfig.model_validate({"models": models, "server": server or {}})


def plan(wanted):
    hosts = plan_hosts(wanted)
    return [*hosts, *plan_cascades(wanted, hosts)]


class Deployer:
    """Notes what is deployed and removed; its applications are in `states`, one after the other, then run."""

    def __init__(self, *states):
        self.deployed, self.removed, self.states = [], [], list(states)

    def deploy(self, apps):
        self.deployed.append(apps)

    def remove(self, names):
        self.removed += names

    def state(self, app):
        if app in self.removed:
            return ("NOT_STARTED", "")
        return self.states.pop(0) if self.states else ("RUNNING", "")


@pytest.fixture
def clock(monkeypatch):
    """The time of the updates' trials, in seconds."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr("fewshard_serve.rayserve.rolling_update.time.monotonic", lambda: Clock.now)
    return Clock


@pytest.fixture
def index():
    """The entries that the gateway shows; change it in place."""
    return [ModelEntry(name, "READY") for name in MODELS]


@pytest.fixture
def updater_of(monkeypatch, index):
    monkeypatch.setattr("fewshard_serve.rayserve.rolling_update.POLL_S", 0.0)

    def make(deployer, index=lambda: index, show=show_nobody):
        return Updater(config(), plan(config()), plan, deployer, index=index, show=show)

    return make


def test_only_the_hosts_of_changed_models_are_replaced(updater_of):
    deployer = Deployer(("DEPLOYING", ""), ("RUNNING", ""))
    updater = updater_of(deployer)
    assert updater.update(config(own={"path": "zoo:better"})) == ["own"]
    ((host,),) = deployer.deployed
    assert (host.app, host.models[0].path, host.must_load) == ("model-own", "zoo:better", True)
    assert updater.update(config(own={"path": "zoo:better"})) == [], "it is what runs now"


def test_models_that_share_a_host_are_replaced_together(updater_of):
    deployer = Deployer(("RUNNING", ""))
    assert updater_of(deployer).update(config(a={"dtype": "fp32"})) == ["a", "b"]


def test_nothing_changed_is_nothing_done(updater_of):
    deployer = Deployer()
    assert updater_of(deployer).update(config()) == []
    assert deployer.deployed == []


def test_files_that_have_changed_are_a_change(updater_of, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"1")
    deployer = Deployer(("RUNNING", ""), ("RUNNING", ""))
    updater = updater_of(deployer)
    assert updater.update(config(own={"path": str(tmp_path)})) == ["own"]
    assert updater.update(config(own={"path": str(tmp_path)})) == []
    (tmp_path / "model.safetensors").write_bytes(b"22")
    assert updater.update(config(own={"path": str(tmp_path)})) == ["own"]


def test_a_failed_update_goes_back(updater_of):
    deployer = Deployer(("DEPLOYING", ""), ("DEPLOY_FAILED", "own: golden input 3 is off"))
    with pytest.raises(UpdateFailed, match="stays as it is: own: golden input 3"):
        updater_of(deployer).update(config(own={"path": "zoo:damaged"}))
    (_, (host,)) = deployer.deployed
    assert (host.models[0].path, host.must_load) == ("zoo:own", False)


def own(deployer):
    """The paths of `own`'s deployments."""
    return [host.models[0].path for hosts in deployer.deployed for host in hosts if host.app == "model-own"]


def test_a_model_that_cannot_answer_is_taken_back_within_its_first_minute(updater_of, clock, index):
    updater = updater_of(deployer := Deployer())
    updater.update(config(own={"path": "zoo:broken"}))
    index[2] = ModelEntry("own", "UNAVAILABLE", reason="20 items of 20 failed")
    updater.look()
    clock.now += ILL_S - 1
    updater.look()
    assert own(deployer) == ["zoo:broken"], "a replica may only have been replaced"
    clock.now += 1
    with pytest.raises(UpdateFailed, match=r"model-own cannot answer, and goes back .*own: 20 items of 20"):
        updater.look()
    assert own(deployer) == ["zoo:broken", "zoo:own"]
    assert not updater.is_watching
    assert updater.update(config()) == [], "what it was runs now"


def test_a_host_that_serve_calls_ill_is_taken_back_too(updater_of, clock):
    deployer = Deployer(("RUNNING", ""), *[("UNHEALTHY", "it dies")] * 2)
    updater = updater_of(deployer, index=list)
    updater.update(config(own={"path": "zoo:broken"}))
    updater.look()
    clock.now += ILL_S
    with pytest.raises(UpdateFailed, match="it dies"):
        updater.look()
    assert own(deployer) == ["zoo:broken", "zoo:own"]


def test_a_model_that_answers_is_watched_for_a_minute_and_then_kept(updater_of, clock, index):
    updater = updater_of(deployer := Deployer())
    updater.update(config(own={"path": "zoo:better"}))
    for ready in ("UNAVAILABLE", "READY", "UNAVAILABLE", "READY"):
        index[2] = ModelEntry("own", ready)
        updater.look()
        clock.now += ILL_S - 1
    assert updater.is_watching
    clock.now += TRIAL_S
    updater.look()
    assert not updater.is_watching
    index[2] = ModelEntry("own", "UNAVAILABLE")
    clock.now += ILL_S
    updater.look()
    assert own(deployer) == ["zoo:better"]


def test_the_others_ailments_are_not_the_updates(updater_of, clock, index):
    updater = updater_of(deployer := Deployer())
    updater.update(config(own={"path": "zoo:better"}))
    index[0] = ModelEntry("a", "UNAVAILABLE")
    updater.look()
    clock.now += ILL_S
    updater.look()
    assert own(deployer) == ["zoo:better"]


def test_an_update_of_an_update_goes_back_to_what_was_known_to_answer(updater_of, clock, index):
    updater = updater_of(deployer := Deployer())
    updater.update(config(own={"path": "zoo:first"}))
    updater.update(config(own={"path": "zoo:second"}))
    index[2] = ModelEntry("own", "UNAVAILABLE")
    updater.look()
    clock.now += ILL_S
    with pytest.raises(UpdateFailed):
        updater.look()
    assert own(deployer) == ["zoo:first", "zoo:second", "zoo:own"]


def test_a_gateway_that_does_not_answer_says_nothing_against_an_update(updater_of, clock):
    def silent():
        raise TimeoutError

    updater = updater_of(deployer := Deployer(), index=silent)
    updater.update(config(own={"path": "zoo:better"}))
    updater.look()
    clock.now += ILL_S
    updater.look()
    assert own(deployer) == ["zoo:better"]


def test_a_serve_that_does_not_deploy_is_asked_to_go_back(updater_of):
    class Silent(Deployer):
        def deploy(self, hosts):
            super().deploy(hosts)
            raise UpdateFailed("Ray Serve's controller does not answer")

    with pytest.raises(UpdateFailed, match="does not answer"):
        updater_of(deployer := Silent()).update(config(own={"path": "zoo:better"}))
    assert own(deployer) == ["zoo:better", "zoo:own"]


@pytest.fixture
def serve_api(monkeypatch):
    """Ray Serve, whose controller answers once `answers` is set."""
    ray, serve = types.ModuleType("ray"), types.ModuleType("ray.serve")
    serve.answers = threading.Event()
    serve.applications = {}

    def status():
        assert serve.answers.wait(60)
        return types.SimpleNamespace(applications=serve.applications)

    serve.status, ray.serve = status, serve
    ray.nodes = lambda: [{"NodeID": "here", "Alive": serve.is_node_alive}]
    serve.is_node_alive = True
    ray.get_runtime_context = lambda: types.SimpleNamespace(get_node_id=lambda: "here")
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.serve", serve)
    yield serve
    serve.answers.set()


def ill(why):
    return types.SimpleNamespace(status=types.SimpleNamespace(value="UNHEALTHY"), message=why, deployments={})


def test_a_controller_that_hangs_is_told_once_and_holds_nobody_up(serve_api, clock, capfd):
    failures, calls = [], CallThread()
    deployer = ServeDeployer(calls, failures.append)
    for _ in range(3):
        deployer.tell_what_ails(["model-own"])
        clock.now += CALL_TIMEOUT_S + 1
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1
    assert "controller does not answer; requests are answered" in said[0]
    serve_api.applications["model-own"] = ill("it dies")
    serve_api.answers.set()
    calls.run(lambda: None, 60)
    deployer.tell_what_ails(["model-own"])
    assert capfd.readouterr().err == "fewshard: model-own is unhealthy: it dies\n"
    assert failures == []


def test_a_machine_that_ray_has_given_up_cannot_heal(serve_api, clock):
    failures, calls = [], CallThread()
    deployer = ServeDeployer(calls, failures.append)
    serve_api.answers.set()
    serve_api.is_node_alive = False
    deployer.tell_what_ails([])
    calls.run(lambda: None, 60)
    deployer.tell_what_ails([])
    assert len(failures) == 1
    assert "given this machine up" in failures[0]


@pytest.mark.parametrize("section", sorted(FewshardConfig.model_fields.keys() - {"models"}))
def test_a_change_of_any_section_is_refused_or_reaches_the_hosts(updater_of, section):
    other = {
        "cascades": [{"name": "c", "stages": ["a", "b"], "accept_above": 0.9}],
        "server": {"port": 9000},
        "auth": {"tokens_file": "tokens.yaml"},
        "limits": {"max_items": 7},
        "logging": {"requests": True},
        "metrics": {"max_series": 700},
        "tracing": {"endpoint": "http://127.0.0.1:4318"},
        "cors": {"origins": ["https://example.org"]},
        "callers": {"trusted_proxies": ["10.0.0.0/8"]},
    }[section]
    changed = FewshardConfig.model_validate({"models": [*MODELS.values()], section: other})
    deployer = Deployer(*[("RUNNING", "")] * 9)
    if section in FIXED:
        with pytest.raises(ConfigError, match=f"{section} cannot change"):
            updater_of(deployer).update(changed)
    else:
        concerned = {"metrics": ["a", "b", "own"], "cascades": ["c"]}[section]
        assert updater_of(deployer).update(changed) == concerned


def test_what_needs_a_restart_is_refused(updater_of):
    deployer = Deployer()
    with pytest.raises(ConfigError, match="restart"):
        updater_of(deployer).update(config(server={"port": 9000}))
    assert deployer.deployed == []


class Shown:
    """Notes which models the gateway is shown, and which as unloaded."""

    def __init__(self):
        self.seen = []

    def __call__(self, apps, unloaded):
        names = sorted(model.name for app in apps for model in app.models)
        self.seen.append((" ".join(names), " ".join(sorted(unloaded))))


def config_of(*models, cascades=()):
    return FewshardConfig.model_validate({"models": models, "cascades": cascades})


NEW = {"name": "new", "path": "zoo:new", "replicas": {"min": 1}}
JOINT = {"name": "joint", "stages": ["a", "own"], "accept_above": 0.9}


def test_a_new_model_is_shown_once_it_runs_and_moves_no_other(updater_of):
    shown = Shown()
    updater = updater_of(deployer := Deployer(("DEPLOYING", "")), show=shown)
    assert updater.update(config_of(*MODELS.values(), NEW, cascades=[JOINT])) == ["new", "joint"]
    assert [[app.app for app in apps] for apps in deployer.deployed] == [["model-new", "cascade-joint"]]
    assert shown.seen == [("a b joint new own", "")]


def test_a_model_that_goes_is_hidden_first_and_removed_last(updater_of):
    shown = Shown()
    updater = updater_of(deployer := Deployer(), show=shown)
    assert updater.update(config_of(MODELS["a"], NEW)) == ["a", "new", "b", "own"]
    assert [[app.app for app in apps] for apps in deployer.deployed] == [["models", "model-new"]]
    assert shown.seen == [("a", ""), ("a new", "")]
    assert deployer.removed == ["model-own"]


def test_a_new_model_that_fails_is_removed_and_what_was_to_go_stays(updater_of):
    shown = Shown()
    deployer = Deployer(("DEPLOY_FAILED", "new: no checkpoint"))
    updater = updater_of(deployer, show=shown)
    with pytest.raises(UpdateFailed, match="model-new cannot be updated, and is not added: new: no check"):
        updater.update(config_of(MODELS["a"], MODELS["b"], NEW))
    assert deployer.removed == ["model-new"]
    assert shown.seen[-1] == ("a b own", "")
    assert updater.update(config()) == []


def test_a_new_model_that_cannot_answer_is_removed_again(updater_of, clock, index):
    updater = updater_of(deployer := Deployer())
    updater.load("new", config_of(NEW))
    index.append(ModelEntry("new", "UNAVAILABLE", reason="it fails"))
    updater.look()
    clock.now += ILL_S
    with pytest.raises(UpdateFailed, match="model-new cannot answer, and is removed again: new: it fails"):
        updater.look()
    assert deployer.removed == ["model-new"]
    assert updater.update(config()) == []


@pytest.mark.parametrize(("name", "replicas"), [("a", {"min": 1}), ("own", None)])
def test_a_model_changes_its_place_only_while_it_is_unloaded(updater_of, name, replicas):
    updater = updater_of(deployer := Deployer())
    file = config(**{name: {"replicas": replicas}})
    for change in (lambda: updater.update(file), lambda: updater.load(name, file)):
        with pytest.raises(ConfigError, match=f"{name} cannot get or give up processes of its own"):
            change()
    assert deployer.deployed == []
    updater.unload(name)
    assert name in updater.load(name, file)


def test_one_model_is_loaded_as_the_file_has_it_and_the_rest_of_the_file_waits(updater_of):
    updater = updater_of(deployer := Deployer())
    file = config_of(MODELS["a"], {**MODELS["own"], "path": "zoo:better"}, NEW)
    assert updater.load("new", file) == ["new"]
    assert updater.load("own", file) == ["own"]
    assert updater.load("own", file) == []
    assert [[app.app for app in apps] for apps in deployer.deployed] == [["model-new"], ["model-own"]]
    with pytest.raises(ConfigError, match="no model 'other'; it has: a, own, new"):
        updater.load("other", file)


def test_files_of_other_models_that_have_changed_are_left_for_later(updater_of, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"1")
    updater = updater_of(Deployer())
    file = config(own={"path": str(tmp_path)})
    updater.update(file)
    (tmp_path / "model.safetensors").write_bytes(b"22")
    assert updater.load("b", file) == []
    assert updater.load("own", file) == ["own"]


def test_an_unloaded_model_is_listed_until_it_is_loaded_again(updater_of):
    shown = Shown()
    updater = updater_of(deployer := Deployer(), show=shown)
    updater.unload("own")
    updater.unload("b")
    assert shown.seen[-1] == ("a", "b own")
    assert deployer.removed == ["model-own"]
    deployer.removed.clear()
    updater.load("own", config())
    assert shown.seen[-1] == ("a own", "b")
    updater.update(config())
    assert shown.seen[-1] == ("a b own", "")


def test_a_model_that_others_need_is_not_unloaded(updater_of):
    updater = updater_of(deployer := Deployer())
    updater.update(config_of(*MODELS.values(), {**NEW, "shadow": "b"}, cascades=[JOINT]))
    deployer.deployed.clear()
    for name, reason in (
        ("a", "'a' is needed: the cascade 'joint' has it as a stage; unload that first"),
        ("b", "'b' is needed: it is the shadow of 'new'"),
        ("nobody", "no model 'nobody' is loaded; there are: a, b, own, new, joint"),
    ):
        with pytest.raises(ConfigError, match=reason):
            updater.unload(name)
    assert deployer.deployed == deployer.removed == []
    assert updater.unload("joint") == ["joint"]
    updater.unload("own")


def test_the_last_model_is_not_unloaded(updater_of):
    updater = updater_of(Deployer())
    updater.unload("a")
    updater.unload("b")
    with pytest.raises(ConfigError, match="'own' is the only model"):
        updater.unload("own")
