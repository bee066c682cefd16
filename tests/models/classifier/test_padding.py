"""Texts share a pass only where that changes no answer; a trial at load finds out where."""

import numpy as np
import pytest

from fewshard_core.formats import FORMATS
from fewshard_models.classifier import load as loading
from fewshard_models.classifier.padding import Padding, groups
from fewshard_models.conformance.words import words
from fewshard_models.errors import CheckpointError, UnusableInput
from tiny_checkpoints import edit, load, make, right

TEXTS = [words(1), words(5, 3), words(2, 8), words(12, 2)]
BESIDE_LONG = [words(1), *[words(55, each) for each in range(10)]]


def check(directory, texts=TEXTS):
    """Return the loaded model after a comparison of a batch."""
    model = load(directory)
    np.testing.assert_allclose(model.run(items(model, texts)).logits, right(directory, texts), atol=1e-4)
    return model


def items(model, texts):
    return model.prepare([model.preprocessor.to_input(text) for text in texts])


@pytest.mark.parametrize("model_type", ["mixtral", "gpt2"])
def test_padding_ids_of_config_and_tokenizer_may_differ(model_type, tmp_path):
    make(tmp_path, model_type, pad_token_id=4)
    assert check(tmp_path, BESIDE_LONG).sharing.padding == Padding(4, "right")


@pytest.mark.parametrize(("model_type", "padding"), [("gpt2", None), ("llama", Padding(1, "left"))])
def test_a_decoder_without_padding_id_takes_its_last_position(model_type, padding, tmp_path):
    """So it can be padded on the left, unless its positions are counted from there."""
    make(tmp_path, model_type, pad_token_id=None)
    model = check(tmp_path, [*TEXTS, words(5, 9), words(12, 20), *BESIDE_LONG])
    assert model.sharing.padding == padding
    assert model.sharing.is_batched
    assert (model.run(items(model, BESIDE_LONG)).num_padding_tokens == 0) == (padding is None)


def test_the_padding_token_may_be_in_a_text(tmp_path):
    make(tmp_path, "llama")
    assert check(tmp_path, [*BESIDE_LONG, "w1 <pad>", "<pad>", "w3 <pad> w4 w5 <pad> <pad>"]).sharing.padding


def test_a_padding_id_beyond_the_embedding_is_not_used(tmp_path):
    make(tmp_path, "gpt2")
    edit(tmp_path, "config.json", pad_token_id=4000)
    assert check(tmp_path, [*TEXTS, words(5, 9)]).sharing.mode == "length by length"


@pytest.mark.parametrize(
    ("model_type", "dtype"), [("fnet", "fp32"), ("mobilebert", "fp32"), ("mobilebert", "bf16")]
)
def test_what_a_mask_does_not_hide_is_not_padded(model_type, dtype, tmp_path):
    make(tmp_path, model_type)
    if dtype == "fp32":
        check(tmp_path, BESIDE_LONG)
    assert load(tmp_path, dtype).sharing.mode == "length by length"


@pytest.mark.parametrize(("model_type", "dtype"), [("longformer", "fp32"), ("deberta-v2", "bf16")])
def test_what_a_mask_hides_is_padded(model_type, dtype, tmp_path):
    assert load(make(tmp_path, model_type), dtype).sharing.mode == "padded"


def test_xlnet_is_padded_on_its_left(tmp_path):
    make(tmp_path, "xlnet")
    model = check(tmp_path, [*BESIDE_LONG, (words(3), words(4))])
    assert model.sharing.padding == Padding(1, "left")


def test_ends_of_an_encoder_decoder_are_counted(tmp_path):
    make(tmp_path, "bart")
    check(tmp_path, [*TEXTS, (words(2), words(4)), "w1 </s> w2", (words(5), words(9))])


def test_a_text_of_one_length_with_another_shares_its_pass(tmp_path):
    make(tmp_path, "electra")
    model = load(tmp_path)
    passes = []
    model.network.register_forward_pre_hook(lambda *_: passes.append(1))
    model.run(items(model, [words(9, each) for each in range(20)]))
    assert len(passes) == 1
    output = model.run(items(model, BESIDE_LONG))
    assert 0 < output.num_padding_tokens <= 0.15 * sum(item.num_tokens for item in items(model, BESIDE_LONG))


@pytest.mark.parametrize("seed", range(5))
def test_groups_keep_to_their_budget_in_few_passes(seed):
    drawn = np.random.default_rng(seed)
    lengths = sorted(int(each) for each in drawn.lognormal(3, 0.6, 64).clip(3, 512))
    sizes = groups(lengths, 1.15)
    ends = np.cumsum(sizes)
    computed = sum(size * lengths[end - 1] for size, end in zip(sizes, ends, strict=True))
    assert ends[-1] == len(lengths)
    assert computed <= 1.15 * sum(lengths)
    assert len(sizes) <= 12
    assert groups(lengths, 1.0) == list(np.unique(lengths, return_counts=True)[1])


def test_groups_of_none_and_one():
    assert groups([], 1.15) == []
    assert groups([7], 1.15) == [1]


@pytest.mark.parametrize("model_type", ["big_bird", "bigbird_pegasus"])
def test_a_short_text_does_not_change_how_a_long_one_is_attended(model_type, tmp_path):
    """BigBird attends to everything from its first short text on, and says so in its log alone."""
    model = load(make(tmp_path, model_type))
    long, short = words(55), words(2)
    expected = right(tmp_path, [long])
    for texts in ([long], [short], [long], [short, long]):
        found = model.run(items(model, texts)).logits[-1:]
        if texts[-1] == long:
            np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_short_text_keeps_its_positions_beside_a_long_one(tmp_path):
    """With longrope, a pass turns all positions as its longest text requires."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 600}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [9.0] * 4, "factor": 2.0}
    make(
        tmp_path,
        "phi3",
        max_position_embeddings=1200,
        original_max_position_embeddings=600,
        rope_parameters=rope,
    )
    texts = [words(595, 1), words(610, 2), *[words(number) for number in range(580, 590)]]
    model = check(tmp_path, texts)
    assert model.sharing.mode == "padded"
    assert model.run(items(model, texts)).num_padding_tokens > 0


def test_a_text_that_is_too_short_for_a_network_is_the_callers(tmp_path):
    """Funnel halves a text twice: transformers raises for one word."""
    make(tmp_path, "funnel")
    model = check(tmp_path, TEXTS[1::2])
    with pytest.raises(UnusableInput, match="2 tokens, and this network needs 5; send a longer text"):
        model(["w1"])


def test_a_network_that_answers_no_text_is_refused_with_its_own_reason(tmp_path):
    """Not as one that needs longer texts: FNet has no Fourier transform of bf16 on a CPU."""
    make(tmp_path, "fnet")
    with pytest.raises(CheckpointError, match=r"ordinary text: RuntimeError: .*BFloat16"):
        load(tmp_path, "bf16")


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [("roc_bert", "makes input_shape_ids besides token ids"), ("layoutlmv3", "needs more than a text")],
)
def test_a_network_that_needs_more_than_token_ids_is_refused(model_type, reason, tmp_path):
    make(tmp_path, model_type)
    with pytest.raises(CheckpointError, match=reason):
        load(tmp_path)


def test_a_network_that_cannot_run_in_16_bits_says_so_and_auto_takes_fp32(tmp_path, monkeypatch, caplog):
    """A CPU has no Fourier transform in bf16."""
    make(tmp_path, "fnet")
    with pytest.raises(
        CheckpointError, match="cannot answer an ordinary text: RuntimeError: Unsupported dtype"
    ):
        load(tmp_path, "bf16")
    monkeypatch.setattr(loading, "choose_dtype", lambda *_: FORMATS["bf16"])
    assert load(tmp_path, "auto").info.dtype == "fp32"
    assert "runs in fp32, since it cannot in bf16" in caplog.text
