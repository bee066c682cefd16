"""What `fewshard serve` looks up and says before it starts: commits of the Hub, and who may use it."""

from typing import Any

import pytest

from fewshard_serve.app import _with_commits
from fewshard_serve.auth import hash_of
from fewshard_serve.cli import main
from fewshard_serve.errors import ConfigError
from fewshard_serve.rayserve import launch
from fewshard_serve.rayserve.deployment_plan import HostSpec
from fewshard_serve.rayserve.serve_config import AppArguments
from local_hub import REPO, LocalHub

PATH = f"hf:{REPO}"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """With what a server would have been started."""
    found: list[dict[str, Any]] = []

    def start(config: Any, **more: Any) -> int:
        found.append({"config": config, **more})
        return 0

    monkeypatch.setattr(launch, "serve_until_signalled", start)
    return found


def test_all_replicas_get_the_commit_of_the_start(
    local_hub: LocalHub, started: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    first = local_hub.push("main", config="one")
    assert main(["serve", PATH, f"old={PATH}@{first}"]) == 0
    (start,) = started
    assert [model.path for model in start["config"].models] == [f"{PATH}@{first}"] * 2
    assert f"fewshard: name is {PATH}@{first}\n" in capsys.readouterr().out
    second = local_hub.push("main", config="two")
    again = start["read_again"]()
    assert [model.path for model in again.models] == [f"{PATH}@{second}", f"{PATH}@{first}"]
    del local_hub.refs["main"]
    with pytest.raises(ConfigError, match=f"name: {PATH} cannot be downloaded: {REPO} has no commit"):
        start["read_again"]()


def test_a_commit_that_is_nowhere_ends_the_command(
    local_hub: LocalHub, started: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    local_hub.push("main", config="one")
    assert main(["serve", f"{PATH}@v9"]) == 2
    assert "has no commit, tag or branch 'v9'" in capsys.readouterr().err
    assert started == []


def arguments(application: str) -> AppArguments:
    config = {
        "models": [{"name": "a", "path": PATH}, {"name": "b", "path": "zoo:sst2-moe"}],
        "cascades": [{"name": "c", "stages": ["a", "b"], "accept_above": 0.5}],
    }
    return AppArguments.model_validate({"application": application, "config": config})


def test_on_a_cluster_an_application_gets_the_commit_when_it_is_built(
    local_hub: LocalHub, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = local_hub.push("main", config="one")
    args = arguments("models")
    host = _with_commits(args.find(args.plan()[0]))
    assert isinstance(host, HostSpec)
    assert [model.path for model in host.models] == [f"{PATH}@{commit}", "zoo:sst2-moe"]
    assert commit in capsys.readouterr().out
    num_asked = len(local_hub.asked)
    args = arguments("cascade-c")
    cascade = args.find(args.plan()[0])
    assert _with_commits(cascade) == cascade
    assert len(local_hub.asked) == num_asked, "a cascade loads nothing"


WARNING = "fewshard: warning: the server listens on 0.0.0.0 and asks for no token"


@pytest.mark.parametrize(
    ("host", "has_tokens", "is_warned"),
    [("0.0.0.0", False, True), ("0.0.0.0", True, False), ("127.0.0.1", False, False), ("::1", False, False)],
)
def test_a_server_that_everybody_may_use_says_so(
    tmp_path, started, capsys: pytest.CaptureFixture[str], host: str, has_tokens: bool, is_warned: bool
) -> None:
    tokens = tmp_path / "tokens.yaml"
    tokens.write_text(f"tokens: [{{name: a, sha256: {hash_of('x').hex()}}}]\n")
    auth = ["--auth.tokens_file", str(tokens)] if has_tokens else []
    assert main(["serve", "zoo:sst2-moe", "--host", host, *auth]) == 0
    said = capsys.readouterr().err
    assert (WARNING in said, "auth.tokens_file" in said) == (is_warned, is_warned)
