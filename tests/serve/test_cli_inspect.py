"""`fewshard inspect` on checkpoints made here, and how counts and tables are printed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fewshard_serve import cli, config_file
from fewshard_serve.commands import formatting
from fewshard_serve.commands import inspect as inspect_command

CARD = {
    "name": "tiny-moe",
    "task": "text",
    "kind": "moe",
    "dataset": "sst2",
    "accuracy": 0.875,
    "f1": 0.8812,
    "num_examples": 64,
    "seed": 3,
    "parameters_total": 4_386_178,
    "parameters_active": 1_900_000,
    "macs": 21_500_000,
    "macs_input": "25 tokens",
    "sparsity": 0.5,
    "recipe": "switch",
    "commit": "abc1234",
    "golden": [{"input": "x", "logits": [0.0, 1.0]}],
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    config = {"architectures": ["SomeModel"], "id2label": {"0": "negative", "1": "positive"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "card.json").write_text(json.dumps(CARD))
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    """The aligned lines as a mapping."""
    assert cli.main(["inspect", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    return {name.strip(): value.strip() for name, value in (line.split("  ", 1) for line in lines)}


def test_the_card_is_shown(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = said(capsys, str(checkpoint))
    assert rows["architecture"] == "SomeModel"
    assert rows["labels"] == "negative, positive"
    assert rows["kind"] == "moe"
    assert rows["parameters"] == "4.39 M in total"
    assert rows["active"] == "1.9 M for one item"
    assert rows["MACs"] == "21.5 M for 25 tokens"
    assert rows["sparsity"] == "50.0 %"
    assert rows["accuracy"] == "87.5 % on sst2 (n = 64, seed 3)"
    assert rows["golden inputs"] == "1"


def test_a_missing_card_is_said(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkpoint / "card.json").unlink()
    rows = said(capsys, str(checkpoint))
    assert rows["card"].startswith("none")
    assert "accuracy" not in rows


def test_a_sparse_card_leaves_out_what_it_does_not_know(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint / "card.json").write_text('{"kind": "dense"}')
    rows = said(capsys, str(checkpoint))
    assert rows["kind"] == "dense"
    assert not {"sparsity", "F1", "recipe", "accuracy", "parameters", "active", "MACs"} & set(rows)


def test_json_prints_the_card_as_it_is(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", "--json", str(checkpoint)]) == 0
    assert json.loads(capsys.readouterr().out) == CARD


def test_zoo_names_are_resolved(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect_command, "zoo_dir", lambda: checkpoint.parent)
    monkeypatch.setattr(inspect_command, "zoo_names", lambda: [checkpoint.name])
    assert said(capsys, f"zoo:{checkpoint.name}")["kind"] == "moe"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("zoo:nowhere", "the zoo holds:"),
        ("hf:a/b", "download it"),
        ("/no/such/folder", "holds no config.json"),
    ],
)
def test_no_checkpoint_is_said(path: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["inspect", path]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(("text", "expected"), [("{", "cannot be read"), ("[]", "not a JSON object")])
def test_a_damaged_config_is_said(
    text: str, expected: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint / "config.json").write_text(text)
    assert cli.main(["inspect", str(checkpoint)]) == 2
    assert expected in capsys.readouterr().err


def test_a_reader_that_has_gone_is_no_traceback(checkpoint: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    code = "import sys; from fewshard_serve.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "inspect", str(checkpoint)],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (999, "999"),
        (1_000, "1 k"),
        (4_386_178, "4.39 M"),
        (2.1e9, "2.1 G"),
        (None, "-"),
        ("7", "-"),
        (True, "-"),
    ],
)
def test_counts(value: object, expected: str) -> None:
    assert formatting.count(value) == expected


def test_fractions() -> None:
    assert [formatting.fraction(value) for value in (0.9123, 1, None)] == ["91.2 %", "100.0 %", "-"]


def test_tables_are_aligned() -> None:
    assert formatting.table(("a", "bb"), [("xyz", "1"), ("", "22")]) == "a    bb\nxyz  1\n     22"


def test_shortening_keeps_one_line_within_the_width() -> None:
    assert formatting.shortened("a\n b", 5) == "a b"
    assert formatting.shortened("abcdef", 5) == "abcd…"


def test_the_zoo_is_where_the_models_package_keeps_it() -> None:
    """`config` finds it without importing that package, which would import torch."""
    from fewshard_models.checkpoint import ZOO

    assert config_file.zoo_dir() == ZOO
