"""transformers' text classifiers on tiny random checkpoints: served equally, or refused with the reason.

Every run compares a share of the architectures, another one each day; the slow test compares all.
"""

import argparse
from datetime import date

import pytest

from fewshard_models.classifier import network, padded_text
from fewshard_models.classifier.padding import Padding, Sharing
from fewshard_models.conformance import matrix, report
from fewshard_models.conformance.matrix import REFUSED, Conformance
from fewshard_models.conformance.tasks import COMPARISONS
from fewshard_models.conformance.text import ARCHITECTURES, compare
from fewshard_serve.commands import conformance
from fewshard_serve.errors import ConfigError

NUM_DAYS = 4
"""A quarter takes about 30 s of CPU time."""
REFUSED_TYPES = {"layoutlmv2", "layoutlmv3", "markuplm", "mra", "reformer", "roc_bert", "tapas"}
DAY = date.today().toordinal()


@pytest.mark.parametrize("model_type", matrix.share_of_the_day(list(ARCHITECTURES), DAY, NUM_DAYS))
def test_architectures_of_the_day(model_type, tmp_path):
    found = compare(model_type, tmp_path)
    assert not found.faults
    assert (found.mode == REFUSED) == (model_type in REFUSED_TYPES)
    assert found.is_served != bool(found.reason)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_architectures():
    found = list(matrix.run(compare, list(ARCHITECTURES)))
    assert [report.line(each) for each in found if each.faults] == []
    assert {each.model_type for each in found if each.mode == REFUSED} == REFUSED_TYPES
    assert sum(each.is_served for each in found) >= 110


def test_a_wrong_decision_is_found(monkeypatch, tmp_path):
    """FNet mixes padding into every token; here it is padded all the same."""
    monkeypatch.setattr(padded_text.PaddedText, "_try", lambda self: Sharing(Padding(1, "right"), True))
    assert "differently beside others" in compare("fnet", tmp_path).reason
    monkeypatch.setattr(network, "check_able", lambda *_: None)
    found = compare("fnet", tmp_path)
    assert found.mode == "padded"
    assert any(fault.startswith("beside long texts: AssertionError: off by") for fault in found.faults)


def test_a_configuration_that_cannot_be_made_is_no_success(monkeypatch, tmp_path):
    monkeypatch.setitem(ARCHITECTURES, "blip", "BlipForSequenceClassification")
    found = compare("blip", tmp_path)
    assert not found.is_served
    assert found.faults


def test_the_days_cover_all_types_once():
    drawn = [
        name
        for day in range(NUM_DAYS)
        for name in matrix.share_of_the_day(list(ARCHITECTURES), day, NUM_DAYS)
    ]
    assert sorted(drawn) == sorted(ARCHITECTURES)


def test_the_command_prints_and_writes(monkeypatch, tmp_path, capsys):
    answers = {
        "a": Conformance("a", "AForX", "padded", worst=2e-7),
        "b": Conformance("b", "BForX", REFUSED, "it | lacks\nall"),
        "c": Conformance("c", "CForX", "packed", faults=("pairs: off by 1",)),
    }
    monkeypatch.setitem(
        COMPARISONS, "text", (dict.fromkeys(answers, "X"), lambda name, directory: answers[name])
    )
    assert _run("--task", "text", "a", "b") == 0
    assert _run("--task", "text", "--write", str(tmp_path / "t.md")) == 1
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in printed[:2]] == [["a", "padded", "off"], ["b", "refused", "it"]]
    written = (tmp_path / "t.md").read_text()
    assert "2 of 3 are served; 1 of them differ from transformers." in written
    assert "| b | BForX | refused | it / lacks all |" in written
    assert "| padded | 1 |" in written
    with pytest.raises(ConfigError, match="no architecture zz; there are a, b, c"):
        _run("--task", "text", "zz")


def _run(*arguments):
    parser = argparse.ArgumentParser()
    conformance.register(parser.add_subparsers())
    args = parser.parse_args(["conformance", *arguments])
    return args.run(args)
