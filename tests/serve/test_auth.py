"""Tokens: who is let in, what the file may say, and that no message repeats a secret."""

import argparse
import logging
import os

import pytest
import yaml

from fewshard_serve.auth import Tokens, hash_of, new_token
from fewshard_serve.commands import token as token_command
from fewshard_serve.errors import ConfigError, Forbidden, Unauthorized

APP, OPS = "app-secret", "ops-secret"


def entry(name, token, scopes="predict"):
    return f"  - {{name: {name}, sha256: {hash_of(token).hex()}, scopes: [{scopes}]}}\n"


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "tokens.yaml"
    file.write_text("tokens:\n" + entry("app", APP) + entry("ops", OPS, "predict, admin"))
    return file


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_token_is_known_by_its_hash(path):
    tokens = Tokens(path)
    assert len(tokens) == 2
    assert tokens.holder_of(f"Bearer {APP}").name == "app"
    assert tokens.holder_of(f"bearer {OPS}").scopes == {"predict", "admin"}


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", f"Basic {APP}", f"Bearer {APP}x", f"Bearer  {APP}", "Bearer \udcff"],
)
def test_anything_else_is_refused_without_repeating_it(path, header):
    with pytest.raises(Unauthorized) as refusal:
        Tokens(path).holder_of(header)
    assert APP not in str(refusal.value)


def test_the_hash_itself_is_no_token(path):
    with pytest.raises(Unauthorized):
        Tokens(path).holder_of(f"Bearer {hash_of(APP).hex()}")


def test_a_scope_that_is_missing_is_named(path):
    holder = Tokens(path).holder_of(f"Bearer {APP}")
    holder.check("predict")
    with pytest.raises(Forbidden, match="the token of app lacks the scope 'admin'"):
        holder.check("admin")


def test_the_file_is_followed(path):
    clock = Clock()
    tokens = Tokens(path, clock)
    path.write_text("tokens:\n" + entry("new", "new-secret"))
    tokens.holder_of(f"Bearer {APP}")  # it was looked at a moment ago
    clock.now = 2.0
    assert tokens.holder_of("Bearer new-secret").name == "new"
    with pytest.raises(Unauthorized):
        tokens.holder_of(f"Bearer {APP}")


def test_a_link_that_is_turned_counts_as_a_change(tmp_path, path):
    other = tmp_path / "other.yaml"
    other.write_text("tokens:\n" + entry("two", "second"))
    link = tmp_path / "link"
    link.symlink_to(path)
    clock = Clock()
    tokens = Tokens(link, clock)
    link.unlink()
    link.symlink_to(other)
    clock.now = 2.0
    assert tokens.holder_of("Bearer second").name == "two"


@pytest.mark.parametrize("damage", ["tokens: [", "tokens: 3", None])
def test_a_file_that_is_damaged_later_changes_nothing(path, damage, caplog):
    clock = Clock()
    tokens = Tokens(path, clock)
    if damage is None:
        os.unlink(path)
    else:
        path.write_text(damage)
    clock.now = 2.0
    with caplog.at_level(logging.ERROR):
        assert tokens.holder_of(f"Bearer {APP}").name == "app"
    assert "the old tokens stay" in caplog.text
    with pytest.raises(ConfigError):
        tokens.reload()
    assert len(tokens) == 2


BAD = {
    "the token in place of its hash": ("{name: a, sha256: hunter2-hunter2}", "64 hexadecimal digits"),
    "the token under a key of its own": ("{name: a, token: hunter2-hunter2}", "unknown key 'token'"),
    "a number": ("{name: a, sha256: 12}", "64 hexadecimal digits"),
    "no hash": ("{name: a}", "lacks the key 'sha256'"),
    "an unknown scope": (f"{{name: a, sha256: {'0' * 64}, scopes: [root]}}", "line 2"),
    "a name for shells": (f"{{name: 'a b', sha256: {'0' * 64}}}", "line 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_explained_without_its_value(tmp_path, case):
    text, explanation = BAD[case]
    file = tmp_path / "tokens.yaml"
    file.write_text(f"tokens:\n  - {text}\n")
    with pytest.raises(ConfigError) as complaint:
        Tokens(file)
    assert explanation in str(complaint.value)
    assert "hunter2" not in str(complaint.value)


@pytest.mark.parametrize("field", ["name", "sha256"])
def test_two_tokens_must_differ(tmp_path, field):
    file = tmp_path / "tokens.yaml"
    second = entry("app", "other") if field == "name" else entry("other", APP)
    file.write_text("tokens:\n" + entry("app", APP) + second)
    with pytest.raises(ConfigError, match=f"same {field}"):
        Tokens(file)


def run_command(*arguments):
    parser = argparse.ArgumentParser()
    token_command.register(parser.add_subparsers())
    args = parser.parse_args(["token", *arguments])
    return args.run(args)


def test_the_command_makes_an_entry_that_works(tmp_path, capsys):
    assert run_command("web", "--scopes", "predict,priority") == 0
    out, err = capsys.readouterr()
    token = err.strip().rpartition(" ")[2]
    assert token not in out
    file = tmp_path / "tokens.yaml"
    file.write_text("tokens:\n" + out)
    assert Tokens(file).holder_of(f"Bearer {token}").scopes == {"predict", "priority"}
    assert yaml.safe_load(file.read_text())["tokens"][0]["name"] == "web"


@pytest.mark.parametrize("arguments", [["web", "--scopes", "root"], ["two words"]])
def test_the_command_refuses_what_the_file_would_not_take(arguments, capsys):
    with pytest.raises(ConfigError):
        run_command(*arguments)
    assert capsys.readouterr().out == ""


def test_tokens_are_long_and_differ():
    assert new_token() != new_token()
    assert len(new_token()) > 50
