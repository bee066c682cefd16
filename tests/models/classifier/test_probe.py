"""A loaded model answers made-up inputs before it is ready; what cannot is refused with the reason."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import fewshard_models
from fewshard_core.values import Item, ModelInfo, TextInput
from fewshard_models.classifier.probe import check_able, probe_problem
from fewshard_models.errors import CheckpointError, UnusableInput

INFO = ModelInfo("m", "text", "dense", ("no", "yes"), "single_label_classification", "X", "fp32", "cpu", 9)


class Words:
    """Items whose features are the number of letters, and whose tokens are words."""

    def probe_inputs(self):
        return [TextInput("ab"), TextInput("a bc def"), TextInput("word " * 100)]

    def items(self, inputs, truncate):
        return [Item(len(text.text), len(text.text.split())) for text in inputs]


def logits_of(items):
    return np.array([[item.features, -1.0] for item in items], np.float32)


def test_a_model_that_answers_has_no_problem():
    assert probe_problem(INFO, Words(), logits_of) == ""


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (lambda items: logits_of(items)[:, :1], r"of 1 tokens with logits of shape \[1, 1\], not \[1, 2\]"),
        (lambda items: logits_of(items) * np.nan, "not finite .fp32.; its weights are damaged"),
        (lambda items: logits_of(items) * 0, "gives every input the same answer"),
        (
            lambda items: logits_of(items) + 0.5 * (len(items) > 1),
            "a second time: a logit is off by 0.5",
        ),
    ],
)
def test_a_model_that_answers_wrongly_is_refused(run, reason):
    with pytest.raises(CheckpointError, match=reason):
        check_able(INFO, Words(), run)


@pytest.mark.parametrize(("hidden", "problem"), [(1.0, ""), (0.0, "the same answer")])
def test_answers_that_16_bits_round_to_one_are_no_fault_of_a_network_that_reads_its_input(hidden, problem):
    network, info = torch.nn.Linear(3, 1), replace(INFO, labels=("stars",), dtype="bf16")

    def run(items):  # 4.3 and a little, of which bf16 keeps nothing
        network(torch.tensor([[0.0, 0.0, hidden * items[0].features]]))
        return np.full((len(items), 1), 4.3125, np.float32)

    assert problem in probe_problem(info, Words(), run, network)
    assert bool(problem) == bool(probe_problem(info, Words(), run, network))
    assert "the same answer" in probe_problem(info, Words(), run)
    assert "the same answer" in probe_problem(replace(info, dtype="fp32"), Words(), run, network)
    assert not network._forward_pre_hooks


def test_a_network_that_raises_is_refused_with_the_size_of_its_input():
    def run(items):
        if items[0].num_tokens == 100:
            raise IndexError("index out of range in self")
        return logits_of(items)

    with pytest.raises(CheckpointError, match="cannot answer an input of 100 tokens: IndexError: index out"):
        check_able(INFO, Words(), run)
    check_able(
        INFO, Words(), run, torch.nn.Linear(100_000, 100_000, device="meta")
    )  # too large for 100 tokens


def test_an_input_that_cannot_be_prepared_is_the_reason():
    class Empty(Words):
        def items(self, inputs, truncate):
            raise UnusableInput(0, "no tokens")

    assert "cannot prepare an ordinary input: no tokens" in probe_problem(INFO, Empty(), logits_of)


def test_what_rounding_may_change_is_relative_to_the_logits():
    def off_by(relative):
        return lambda items: logits_of(items) * (1 + relative * (len(items) > 1))

    assert probe_problem(INFO, Words(), off_by(5e-5)) == ""
    assert "differently beside others" in probe_problem(INFO, Words(), off_by(2e-4))


@pytest.mark.parametrize("name", ["sst2-dense", "sst2-moe", "cifar10-narrow"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_bundled_models_pass(name, dtype):
    model = fewshard_models.load(f"zoo:{name}", device="cpu", dtype=dtype)
    model.self_check()
    items = model.prepare(model.preprocessor.probe_inputs())
    assert max(item.num_tokens for item in items) == model.info.max_tokens
    assert len({len(item.features.ids) for item in items} if items[0].num_tokens else "ab") >= 2
