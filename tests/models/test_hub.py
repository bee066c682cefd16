"""`hf:<owner>/<name>@<revision>`: one commit for all who load it, and errors that say what to do."""

import logging
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants as constants
import pytest

from fewshard_models import hub
from fewshard_models.checkpoint import resolve
from fewshard_models.errors import CheckpointError
from local_hub import REPO, LocalHub

PATH = f"hf:{REPO}"


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LocalHub]:
    one = LocalHub()
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, one.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", one.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield one
    one.close()


def config_in(directory: Path) -> str:
    return (directory / "config.json").read_text()


def test_a_revision_is_a_branch_a_tag_or_a_commit(there: LocalHub) -> None:
    first = there.push("v1", config="one")
    second = there.push("main", config="two")
    there.push("refs/pr/3", config="three")
    assert config_in(resolve(PATH)) == "two"
    assert config_in(resolve(f"{PATH}@main")) == "two"
    assert config_in(resolve(f"{PATH}@v1")) == "one"
    assert config_in(resolve(f"{PATH}@refs/pr/3")) == "three"
    assert config_in(resolve(f"{PATH}@{first}")) == "one"
    assert hub.pinned(PATH) == f"{PATH}@{second}"
    assert hub.pinned(f"{PATH}@{first}") == f"{PATH}@{first}"


def test_who_loads_later_loads_the_commit_of_the_start(there: LocalHub) -> None:
    there.push("main", config="one")
    path = hub.pinned(PATH)
    there.push("main", config="two")
    assert config_in(resolve(path)) == "one"
    assert config_in(resolve(hub.pinned(PATH))) == "two"


def test_without_the_hub_the_last_commit_is_loaded(there: LocalHub) -> None:
    there.push("main", config="one")
    path = hub.pinned(PATH)
    resolve(path)
    there.error = (503, "")
    assert hub.pinned(PATH) == path
    assert config_in(resolve(path)) == "one"


def test_pinning_draws_no_bars(there: LocalHub, capfd: pytest.CaptureFixture[str]) -> None:
    there.push("main", config="one")
    hub.pinned(PATH)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("path", "error", "words"),
    [
        (f"{PATH}@v9", None, f"{REPO} has no commit, tag or branch 'v9'"),
        ("hf:nobody/nothing", None, "there is no nobody/nothing, or it is private; check the name, or set HF_TOKEN"),
        (PATH, (403, "GatedRepo"), "given only to who has accepted its conditions; do so, and set HF_TOKEN"),
        (PATH, (503, ""), "the Hub does not answer, and the files are not in this machine's cache"),
    ],
)
def test_what_cannot_be_had_is_said_with_the_remedy(
    there: LocalHub, path: str, error: tuple[int, str] | None, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    there.push("main", config="one")
    there.error = error
    with caplog.at_level(logging.ERROR), pytest.raises(CheckpointError) as refusal:
        hub.pinned(path)
    assert str(refusal.value).startswith(f"{path} cannot be downloaded: ")
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "path", ["hf:a", "hf:a/b@", "hf:a/b@../../x", "hf:a/b@-x", "hf:a/b@x y", "hf:a/b@c@d", "hf:a/b/c", "hf:a/b@x/"]
)
def test_other_forms_are_refused(path: str) -> None:
    with pytest.raises(CheckpointError, match="is not of the form hf:<owner>/<name>, or hf:"):
        hub.parse(path)
