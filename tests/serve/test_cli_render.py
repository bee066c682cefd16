"""`fewshard render`: what it prints is checked by itself, by Ray's own schema, and by a shell."""

import os
import subprocess

import pytest
import yaml

from fewshard_serve.cli import main
from fewshard_serve.rayserve.environment import ALWAYS, FOR_WORKERS
from fewshard_serve.rayserve.haproxy import BINARY, has_haproxy, is_edited

CONFIG = "models:\n  - {name: a, path: ./here, replicas: {min: 2}}\nserver: {port: 9000}\n"


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "fewshard.yaml"
    path.write_text(CONFIG)
    return path


def test_what_is_printed_passes_its_own_check(config_file, tmp_path, capsys):
    assert main(["render", str(config_file)]) == 0
    said = capsys.readouterr().out
    config = yaml.safe_load(said)
    assert config["http_options"] == {"host": "127.0.0.1", "port": 9000}
    model = config["applications"][0]["args"]["config"]["models"][0]
    assert model == {"name": "a", "path": str(tmp_path / "here"), "replicas": {"min": 2, "max": 2}}
    rendered = tmp_path / "serve.yaml"
    rendered.write_text(said)
    assert main(["render", "--check", str(rendered)]) == 0
    assert capsys.readouterr().out == f"{rendered}: 2 applications, no mistake\n"


def test_mistakes_end_the_command_with_their_line(tmp_path, capsys):
    rendered = tmp_path / "serve.yaml"
    rendered.write_text("applications:\n  - nme: a\n    import_path: a:b\n")
    assert main(["render", "--check", str(rendered)]) == 2
    assert f"{rendered}, line 2: unknown key 'nme'" in capsys.readouterr().err


def shell(script):
    done = subprocess.run(
        ["sh", "-c", script + "\nenv"],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


def test_a_shell_takes_the_environment(capsys):
    assert main(["render", "--env"]) == 0
    seen = shell(capsys.readouterr().out)
    assert (ALWAYS | FOR_WORKERS).items() <= seen.items()


@pytest.mark.skipif(not has_haproxy(), reason="ray[serve] brings an HAProxy on Linux alone")
def test_the_haproxy_script_runs_and_is_known_for_ours(tmp_path, capsys):
    assert main(["render", "--haproxy", str(tmp_path / "haproxy")]) == 0
    binary = shell(capsys.readouterr().out)[BINARY]
    assert is_edited(binary)
    assert (
        "HAProxy version" in subprocess.run([binary, "-v"], capture_output=True, text=True, check=True).stdout
    )
