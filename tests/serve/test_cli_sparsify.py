"""`fewshard sparsify` from options to a checkpoint with its report, and the mistakes it names."""

import argparse
import json
from pathlib import Path

import pytest

from fewshard_serve.commands import sparsify
from fewshard_serve.config_file import zoo_dir, zoo_names
from fewshard_serve.errors import ConfigError


def parsed(*arguments: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    sparsify.register(parser.add_subparsers())
    return parser.parse_args(["sparsify", *map(str, arguments)])


@pytest.fixture
def source() -> Path:
    if "cifar10-dense" not in zoo_names():
        pytest.skip("the zoo is not built")
    return zoo_dir() / "cifar10-dense"


def test_a_pruned_checkpoint_is_written_with_its_report(source, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("FEWSHARD_DATA", raising=False)
    args = parsed(source, "--out", tmp_path / "half", "--method", "magnitude", "--density", 0.5)
    assert args.run(args) == 0
    said = capsys.readouterr().out
    assert "stages.0.down.conv" in said
    assert "no card: accuracy was not measured" in said
    files = {file.name for file in (tmp_path / "half").iterdir()}
    assert files == {"config.json", "model.safetensors", "preprocessor_config.json", "sparsity.json"}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["sparsity_kind"] == "static"
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "magnitude", "--macs-share", 0.5], "takes --density"),
        (["--method", "structured", "--density", 0.5], "takes --macs-share or --time-share"),
        (["--method", "structured", "--macs-share", 0.5, "--round-to", 0], "at least 1"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path, options, message):
    args = parsed("zoo:x", "--out", tmp_path / "out", *options)
    with pytest.raises(ConfigError, match=message):
        args.run(args)


def test_an_existing_directory_is_not_overwritten(tmp_path):
    args = parsed("zoo:x", "--out", tmp_path, "--method", "magnitude", "--density", 0.5)
    with pytest.raises(ConfigError, match="exists already"):
        args.run(args)
