"""`hf:<owner>/<name>@<revision>`: one commit for all who load it, and errors that say what to do."""

import logging
from pathlib import Path

import pytest

from fewshard_models import hub
from fewshard_models.checkpoint import resolve
from fewshard_models.errors import CheckpointError
from local_hub import REPO, LocalHub

PATH = f"hf:{REPO}"


def config_in(directory: Path) -> str:
    return (directory / "config.json").read_text()


def test_a_revision_is_a_branch_a_tag_or_a_commit(local_hub: LocalHub) -> None:
    first = local_hub.push("v1", config="one")
    second = local_hub.push("main", config="two")
    local_hub.push("refs/pr/3", config="three")
    assert config_in(resolve(PATH)) == "two"
    assert config_in(resolve(f"{PATH}@main")) == "two"
    assert config_in(resolve(f"{PATH}@v1")) == "one"
    assert config_in(resolve(f"{PATH}@refs/pr/3")) == "three"
    assert config_in(resolve(f"{PATH}@{first}")) == "one"
    assert hub.pinned(PATH) == f"{PATH}@{second}"
    assert hub.pinned(f"{PATH}@{first}") == f"{PATH}@{first}"


def test_who_loads_later_loads_the_commit_of_the_start(local_hub: LocalHub) -> None:
    local_hub.push("main", config="one")
    path = hub.pinned(PATH)
    local_hub.push("main", config="two")
    assert config_in(resolve(path)) == "one"
    assert config_in(resolve(hub.pinned(PATH))) == "two"


def test_without_the_hub_the_last_commit_is_loaded(local_hub: LocalHub) -> None:
    local_hub.push("main", config="one")
    path = hub.pinned(PATH)
    resolve(path)
    local_hub.error = (503, "")
    assert hub.pinned(PATH) == path
    assert config_in(resolve(path)) == "one"


def test_pinning_draws_no_bars(local_hub: LocalHub, capfd: pytest.CaptureFixture[str]) -> None:
    local_hub.push("main", config="one")
    hub.pinned(PATH)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        (f"{PATH}@v9", None, f"{REPO} has no commit, tag or branch 'v9'"),
        (
            "hf:nobody/nothing",
            None,
            "there is no nobody/nothing, or it is private; check the name, or set HF_TOKEN",
        ),
        (PATH, (403, "GatedRepo"), "given only to who has accepted its conditions; do so, and set HF_TOKEN"),
        (PATH, (503, ""), "the Hub does not answer, and the files are not in this machine's cache"),
    ],
)
def test_what_cannot_be_had_is_said_with_the_remedy(
    local_hub: LocalHub,
    path: str,
    error: tuple[int, str] | None,
    words: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    local_hub.push("main", config="one")
    local_hub.error = error
    with caplog.at_level(logging.ERROR), pytest.raises(CheckpointError) as refusal:
        hub.pinned(path)
    assert str(refusal.value).startswith(f"{path} cannot be downloaded: ")
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "path",
    ["hf:a", "hf:a/b@", "hf:a/b@../../x", "hf:a/b@-x", "hf:a/b@x y", "hf:a/b@c@d", "hf:a/b/c", "hf:a/b@x/"],
)
def test_other_forms_are_refused(path: str) -> None:
    with pytest.raises(CheckpointError, match="is not of the form hf:<owner>/<name>, or hf:"):
        hub.parse(path)
