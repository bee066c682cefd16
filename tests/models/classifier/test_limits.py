"""A text is cut at the limit that network and tokenizer have, wherever they state it."""

import numpy as np
import pytest

import fewshard_models
from fewshard_core.values import TextInput
from fewshard_models.conformance.words import words
from fewshard_models.errors import CheckpointError, UnusableInput
from tiny_checkpoints import edit, load, make, right

LONG = words(300)


@pytest.mark.parametrize(
    ("model_type", "rows", "limit"),
    [("mpnet", 66, 64), ("ibert", 66, 64), ("roberta", 66, 64), ("electra", 66, 66), ("opt", 66, 66)],
)
def test_positions_behind_the_padding_id_hold_fewer_tokens(model_type, rows, limit, tmp_path):
    make(tmp_path, model_type, max_position_embeddings=rows)
    model = load(tmp_path)
    assert model.info.max_tokens == limit
    (item,) = model.prepare([TextInput(LONG)])
    assert item.num_tokens == limit
    np.testing.assert_allclose(model.run([item]).logits, right(tmp_path, [LONG], limit), atol=1e-4)


def test_a_limit_may_be_in_the_text_part_of_a_configuration(tmp_path):
    make(tmp_path, "gemma3", text_config={"max_position_embeddings": 2048})
    model = load(tmp_path)
    assert model.info.max_tokens == 2048
    assert model.prepare([TextInput(words(1000))])[0].num_tokens == 1001


@pytest.mark.parametrize(
    ("model_type", "fields", "limit"), [("mpt", {"max_seq_len": 96}, 96), ("t5", {}, 2048)]
)
def test_a_limit_has_other_names_or_is_absent(model_type, fields, limit, tmp_path):
    make(tmp_path, model_type, **fields)
    edit(tmp_path, "tokenizer_config.json", model_max_length=...)
    assert fewshard_models.load(tmp_path, device="cpu", dtype="fp32").info.max_tokens == limit


@pytest.mark.parametrize(("stated", "limit"), [(20, 20), (500, 64), (int(1e30), 64), (-1, 64)])
def test_the_smaller_limit_counts(stated, limit, tmp_path):
    make(tmp_path, "electra")
    edit(tmp_path, "tokenizer_config.json", model_max_length=stated)
    assert load(tmp_path).info.max_tokens == limit


@pytest.mark.parametrize("model_type", ["bert", "mixtral"])
def test_a_word_without_embedding_is_the_callers(model_type, tmp_path):
    tokenizer_of(make(tmp_path, model_type), "<a>", "<b>", "<c>", "<new>")
    model = load(tmp_path)
    assert model(["w1 w2", "w3"]).logits.shape == (2, 3)
    with pytest.raises(UnusableInput, match=r"item 1: .* no embedding of the token '<new>' \(id 48 of 48\)"):
        model(["w1", "w2 <new>"])


def tokenizer_of(directory, *added):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_tokens(list(added))
    tokenizer.save_pretrained(directory)


@pytest.mark.parametrize("model_type", ["bert", "llama"])
def test_the_tokenizer_of_another_network_is_refused(model_type, tmp_path):
    make(tmp_path, model_type)
    other = make(tmp_path / "other", model_type, vocab_size=30)
    for name in ("config.json", "model.safetensors"):
        (other / name).replace(tmp_path / name)
    with pytest.raises(CheckpointError, match="a tokenizer of 45 tokens and a network with 30 rows"):
        load(tmp_path)


def test_a_network_without_segments_for_pairs_refuses_pairs(tmp_path):
    make(tmp_path, "bert", type_vocab_size=1)
    edit(
        tmp_path, "tokenizer_config.json", model_input_names=["input_ids", "token_type_ids", "attention_mask"]
    )
    model = load(tmp_path)
    np.testing.assert_allclose(model([LONG]).logits, right(tmp_path, [LONG], 64), atol=1e-4)
    with pytest.raises(UnusableInput, match="knows 1 kinds of segments"):
        model([("w1", "w2")])


def test_the_padding_token_within_a_text_takes_no_position_in_roberta(tmp_path):
    make(tmp_path, "roberta")
    with pytest.raises(UnusableInput, match="the text holds '<pad>'"):
        load(tmp_path)(["w1 <pad> w2"])
