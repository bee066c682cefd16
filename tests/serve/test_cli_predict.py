"""`fewshard predict` with a checkpoint and no server: its answers have the form and numbers of a server's."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewshard_core.activation import activate
from fewshard_models.classifier.load import load
from fewshard_serve import cli
from fewshard_serve.commands.predict import is_checkpoint

TEXTS = ["a warm and funny film", "two hours of noise"]


@pytest.mark.parametrize(
    ("model", "is_one"),
    [("zoo:sst2-moe", True), ("hf:a/b", True), ("./mine", True), ("/models/m", True), ("sst2-moe", False)],
)
def test_a_bare_name_is_a_served_model(model: str, is_one: bool) -> None:
    assert is_checkpoint(model) == is_one


def test_a_bare_name_stays_one_where_a_directory_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert cli.main(["predict", "mine", "x", "--url", "http://127.0.0.1:9"]) == 1
    assert "127.0.0.1:9" in capsys.readouterr().err


def test_json_is_what_a_server_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", "zoo:sst2-moe", *TEXTS, "--json", "--top-k", "1"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == {"model", "predictions", "usage", "timings_ms"}
    assert answer["model"] == "sst2-moe"
    assert answer["usage"] == {"items": 2, "tokens": 13}
    assert set(answer["timings_ms"]) == {"queue", "preprocess", "infer"}
    model = load("zoo:sst2-moe")
    scores = activate(model(TEXTS).logits, model.info.problem_type)
    expected = [[model.info.labels[row.argmax()], pytest.approx(row.max(), abs=1e-4)] for row in scores]
    assert [[best["label"], best["score"]] for (best,) in answer["predictions"]] == expected


def test_the_table_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "red.png"
    Image.fromarray(np.full((40, 30, 3), (200, 10, 10), np.uint8)).save(file)
    assert cli.main(["predict", "zoo:cifar10-narrow", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["input", "label", "score"]
    assert len(lines) == 6
    assert lines[1].split()[1] == load("zoo:cifar10-narrow")([file]).labels[0]
    assert lines[-1].startswith("1 item, 0 tokens, queue 0.00 ms")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["zoo:none", "x"], "the bundled zoo has no 'none'"),
        (["./none", "x"], "no checkpoint directory './none'"),
        (["zoo:cifar10-narrow", "a text"], "item 0: this model classifies images"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["predict", *arguments]) == 1
    assert message in capsys.readouterr().err
