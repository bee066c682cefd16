"""Every architecture with experts: logits as transformers' eager ones, counts as the tokens, and the page.

Every run compares some of them, others each day; the slow test compares all.
"""

import argparse
from datetime import date
from pathlib import Path

import pytest
import torch

from fewshard_models.conformance import experts
from fewshard_models.conformance.matrix import share_of_the_day
from fewshard_models.sharding.transformers_body import TYPES
from fewshard_serve.commands import conformance
from fewshard_serve.errors import ConfigError

PAGE = Path(__file__).parents[3] / "docs" / "experts.md"
ROWS = {line.split("|")[1].strip(): line for line in experts.table_of(PAGE.read_text()).splitlines()[2:]}
NUM_DAYS = 8
OF_THE_DAY = share_of_the_day(sorted(ROWS), date.today().toordinal(), NUM_DAYS)


@pytest.mark.parametrize(
    "model_type",
    [pytest.param(each, marks=() if each in OF_THE_DAY else pytest.mark.slow) for each in sorted(ROWS)],
)
def test_an_architecture_is_as_the_page_says(model_type):
    found = experts.compare(model_type)
    assert not found.faults
    assert experts.row(found, TYPES) == ROWS[model_type]


@pytest.mark.slow
def test_the_page_has_every_architecture():
    assert sorted(ROWS) == sorted(experts.architectures_with_experts())


def test_architectures_without_experts_are_none():
    assert experts.architectures_with_experts(["bert", "llama", "qwen3_moe", "doge"]) == ["qwen3_moe", "doge"]


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("is_normalised", [False, True])
def test_a_router_is_described_by_what_it_chose(scoring, is_normalised):
    torch.manual_seed(0)
    logits = torch.randn(20, 8, dtype=torch.float64)
    scores = logits.softmax(1) if scoring == "softmax" else logits.sigmoid()
    weights, chosen = scores.topk(3, dim=1)
    weights = weights / weights.sum(1, keepdim=True) if is_normalised else weights
    assert experts.described(logits, chosen, weights) == scoring + (", normalised" if is_normalised else "")
    assert experts.described(logits, chosen, weights**2) == "weights of its own"


def test_wrong_counts_and_wrong_logits_are_found(monkeypatch):
    from fewshard_models.classifier import padded_text

    monkeypatch.setattr(experts, "ways", lambda model_type: {"top-2": {"num_experts_per_tok": 2}})
    assert experts.compare("mixtral").faults == ()
    monkeypatch.setattr(padded_text, "own_rows", lambda *_: None)  # padding would be counted
    (fault,) = experts.compare("mixtral").faults
    assert fault.startswith("top-2: its experts are not counted")
    monkeypatch.setattr(experts, "EAGER", {})
    monkeypatch.setattr(experts, "TOLERANCE", -1.0)
    assert any("off by" in each for each in experts.compare("mixtral").faults)


def test_the_command_writes_the_table_into_the_page(monkeypatch, tmp_path, capsys):
    found = experts.ExpertConformance("a", "AForX", "routed", "gated", "softmax", True)
    wrong = experts.ExpertConformance("b", "BForX", "routed", "gated", "softmax", False, ("top-1: off by 1",))
    answers = {"a": found, "b": wrong}
    monkeypatch.setattr(experts, "architectures_with_experts", lambda: list(answers))
    monkeypatch.setattr(experts, "compare", answers.get)
    page = tmp_path / "experts.md"
    page.write_text(PAGE.read_text())
    assert _run("--experts", "a") == 0
    assert _run("--experts", "--write", str(page)) == 1
    assert "  top-1: off by 1" in capsys.readouterr().out.splitlines()
    assert experts.table_of(page.read_text()).splitlines()[2:] == [
        "| a | AForX | routed | gated | softmax | yes | yes | no |",
        "| b | BForX | routed | gated | softmax | no | no | no |",
    ]
    assert page.read_text().startswith(PAGE.read_text().split("<!--", maxsplit=1)[0])
    with pytest.raises(ConfigError, match="no architecture with experts zz; there are a, b"):
        _run("--experts", "zz")


def _run(*arguments):
    parser = argparse.ArgumentParser()
    conformance.register(parser.add_subparsers())
    args = parser.parse_args(["conformance", *arguments])
    return args.run(args)
