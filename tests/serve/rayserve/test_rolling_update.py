"""A changed configuration: what is deployed anew, what is refused, and what a failure leaves."""

import pytest

from fewshard_serve.config import FewshardConfig
from fewshard_serve.errors import ConfigError
from fewshard_serve.rayserve.deployment_plan import plan_hosts
from fewshard_serve.rayserve.rolling_update import FIXED, UpdateFailed, Updater

MODELS = {
    "a": {"name": "a", "path": "zoo:a"},
    "b": {"name": "b", "path": "zoo:b"},
    "own": {"name": "own", "path": "zoo:own", "replicas": {"min": 2}},
}


def config(server=None, **changed):
    models = [{**model, **changed.get(name, {})} for name, model in MODELS.items()]
    return FewshardConfig.model_validate({"models": models, "server": server or {}})


class Deployer:
    """Notes what is deployed; its applications are in `states`, one after the other."""

    def __init__(self, *states):
        self.deployed, self.states = [], list(states)

    def deploy(self, hosts):
        self.deployed.append(hosts)

    def state(self, app):
        return self.states.pop(0)


@pytest.fixture
def updater_of(monkeypatch):
    monkeypatch.setattr("fewshard_serve.rayserve.rolling_update.POLL_S", 0.0)

    def make(deployer):
        return Updater(config(), plan_hosts(config()), plan_hosts, deployer)

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
    }[section]
    changed = FewshardConfig.model_validate({"models": [*MODELS.values()], section: other})
    deployer = Deployer(*[("RUNNING", "")] * 9)
    if section in FIXED:
        with pytest.raises(ConfigError, match=f"{section} cannot change"):
            updater_of(deployer).update(changed)
    else:
        assert updater_of(deployer).update(changed) == ["a", "b", "own"]


@pytest.mark.parametrize(
    "changed",
    [
        config(server={"port": 9000}),
        config(a={"replicas": {"min": 1}}),
        config(a={"name": "c"}),
        config().model_copy(update={"models": config().models[:2]}),
    ],
)
def test_what_needs_a_restart_is_refused(updater_of, changed):
    deployer = Deployer()
    with pytest.raises(ConfigError, match="restart"):
        updater_of(deployer).update(changed)
    assert deployer.deployed == []
