"""config.json as people have it: labels of every kind, contradictions, and sizes that nobody can serve."""

import json

import numpy as np
import pytest
import transformers as tf

from fewshard_models.classifier.load import load
from fewshard_models.config_file import MAX_BYTES, load_config
from fewshard_models.errors import CheckpointError
from small_checkpoints import TEXTS, change_config, change_weights, reference, write_text


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def bert(saved, tmp_path):
    """A copy whose config.json may be changed."""
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def refusal(directory):
    with pytest.raises(CheckpointError) as caught:
        load(directory, "cpu", "fp32")
    return str(caught.value)


class TestLabels:
    @pytest.mark.parametrize(
        ("names", "labels"),
        [
            ({"0": 0, "1": 1, "2": 2}, ("0", "1", "2")),
            ({"0": -1, "1": 0.5, "2": True}, ("-1", "0.5", "true")),
            ({"0": "ant", "1": None, "2": "cow"}, ("ant", "LABEL_1", "cow")),
            ({"2": "cow", "0": "ant", "1": "bee"}, ("ant", "bee", "cow")),
            ({"0": "crane", "1": "cat", "2": "crane"}, ("crane", "cat", "crane")),
        ],
    )
    def test_every_label_is_a_string_in_the_order_of_outputs(self, names, labels, bert):
        change_config(bert, id2label=names)
        model = load(bert, "cpu", "fp32")
        assert model.info.labels == labels
        assert all(type(label) is str for label in model(TEXTS).labels)

    @pytest.mark.parametrize(
        ("names", "told"),
        [
            (
                {"0": "ant", "2": "cow", "3": "dog"},
                "id2label has 3 names but none for 1; name the numbers from 0 to 2",
            ),
            ({"1": "ant", "2": "bee", "3": "cow"}, "none for 0"),
            ({"0": "ant", "1": ["bee"], "2": "cow"}, 'id2label names 1 ["bee"]; a name is a string'),
            ({"0": "ant", "1": "\ud83d", "2": "cow"}, 'names 1 "\\ud83d"; a name is a string of whole'),
            ({"ant": 0, "bee": 1, "cow": 2}, "config.json cannot be used"),
            (["ant", "bee", "cow"], "id2label must be an object from numbers to names"),
            ({}, "id2label"),
            (
                {"0": "ant", "1": "bee", "2": "cow", "3": "dog"},
                "classifier.weight is [3, 32], the network's [4, 32]",
            ),
        ],
    )
    def test_labels_that_do_not_fit_are_refused(self, names, told, bert):
        change_config(bert, id2label=names)
        assert told in refusal(bert)

    def test_a_number_of_labels_without_names(self, bert):
        document = json.loads((bert / "config.json").read_text())
        del document["id2label"], document["label2id"]
        (bert / "config.json").write_text(json.dumps({**document, "num_labels": 3}))
        assert load(bert, "cpu", "fp32").info.labels == ("LABEL_0", "LABEL_1", "LABEL_2")


class TestProblemType:
    def test_an_unknown_one_is_refused(self, bert):
        change_config(bert, problem_type="ranking")
        assert "problem_type" in refusal(bert)

    @pytest.mark.parametrize("stated", ["regression", "multi_label_classification"])
    def test_several_outputs_of_any_type_are_served(self, stated, bert):
        change_config(bert, problem_type=stated)
        model = load(bert, "cpu", "fp32")
        right = reference(bert)
        scores = right if stated == "regression" else 1 / (1 + np.exp(-right))
        np.testing.assert_allclose(model(TEXTS).scores, scores, atol=1e-4)

    def test_one_output_that_is_a_choice_is_refused_as_by_transformers(self, tmp_path):
        names = {"id2label": {0: "score"}, "label2id": {"score": 0}}
        directory = write_text(tmp_path, **names)
        assert load(directory, "cpu", "fp32").info.problem_type == "single_label_classification"
        change_config(directory, problem_type="single_label_classification")
        assert "requires `num_labels > 1`" in refusal(directory)


class TestArchitectures:
    @pytest.mark.parametrize("stated", [None, []])
    def test_a_model_type_with_one_class_needs_none(self, stated, bert):
        change_config(bert, architectures=stated)
        np.testing.assert_allclose(load(bert, "cpu", "fp32")(TEXTS).logits, reference(bert), atol=1e-4)

    def test_without_one_the_weights_still_decide(self, bert):
        change_config(bert, architectures=None)
        change_weights(bert, lambda weights: weights.pop("classifier.weight"))
        assert "lacks weights of the right shape for classifier.weight" in refusal(bert)

    @pytest.mark.parametrize("stated", ["BertForSequenceClassification", [1], {"a": 1}])
    def test_no_list_of_names(self, stated, bert):
        change_config(bert, architectures=stated)
        assert "architectures must be a list" in refusal(bert)

    def test_several_that_are_not_of_one_network(self, bert):
        change_config(bert, architectures=["BertForSequenceClassification", "BertForMaskedLM"])
        told = "names BertForMaskedLM, BertForSequenceClassification as its architectures; name the one class"
        assert told in refusal(bert)

    def test_one_of_another_type_is_refused(self, bert):
        change_config(bert, architectures=["DebertaV2ForSequenceClassification"])
        assert "DebertaV2ForSequenceClassification, but its model_type bert is that of Bert" in refusal(bert)


@pytest.mark.parametrize("kind", ["relative_key", "relative_key_query", "rotary"])
def test_relative_positions_that_transformers_overlooks_are_refused(kind, bert):
    change_config(bert, position_embedding_type=kind)
    assert f"position_embedding_type is '{kind}', which transformers 5 does not compute" in refusal(bert)


@pytest.mark.parametrize("limit", ["many", {"tokens": 512}, [512]])
def test_a_tokenizer_whose_limit_is_no_number(limit, bert):
    change_config(bert, "tokenizer_config.json", model_max_length=limit)
    assert str(bert) in refusal(bert)


def test_positions_that_the_network_knows_are_served(tmp_path):
    directory = write_text(tmp_path, tf.EsmConfig, position_embedding_type="rotary", mask_token_id=4)
    np.testing.assert_allclose(load(directory, "cpu", "fp32")(TEXTS).logits, reference(directory), atol=1e-4)


@pytest.mark.parametrize("key", ["transformers_weights", "fusion_config"])
def test_keys_that_change_what_is_loaded_are_refused(key, bert):
    change_config(bert, **{key: "other.safetensors"})
    assert f"{key} is not supported; delete it" in refusal(bert)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 1e30),
        ("num_hidden_layers", -7),
        ("num_labels", 10**10),
        ("vocab_size", 10**12),
        ("num_attention_heads", 10**9),
        ("depths", [2, 10**9]),
    ],
)
def test_counts_that_nobody_has_are_refused_before_anything_is_made(field, value, bert):
    change_config(bert, **{field: value})
    with pytest.raises(CheckpointError, match=f"{field} is .*; it must be a number up to"):
        load_config(bert)


def test_no_limit_as_tokenizers_write_it_is_believed(bert):
    change_config(bert, model_max_length=10**30)
    assert load_config(bert).num_hidden_layers == 2


def test_files_and_lists_of_absurd_length(bert):
    change_config(bert, layer_types=list(range(5000)))
    with pytest.raises(CheckpointError, match="layer_types is a list of 5,000"):
        load_config(bert)
    (bert / "config.json").write_bytes(b" " * (MAX_BYTES + 1))
    with pytest.raises(CheckpointError, match="it is not a configuration"):
        load_config(bert)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", "\xff", '{"model_type": 7}', '{"a": ' * 5000])
def test_what_is_no_configuration(text, bert):
    (bert / "config.json").write_bytes(text.encode("latin-1"))
    assert "config.json cannot be used" in refusal(bert)


class TestScores:
    """What cross-encoders and reward models of sentence-transformers say of their one output."""

    @pytest.mark.parametrize(
        ("fields", "problem"),
        [
            ({}, None),
            ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, "regression"),
            ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, "regression"),
            ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}}, None),
            ({"sentence_transformers": {"version": "5.1.0"}}, None),
        ],
    )
    def test_its_function_decides(self, fields, problem, bert):
        change_config(bert, id2label={"0": "score"}, label2id={"score": 0}, **fields)
        assert load_config(bert).problem_type == problem

    def test_it_does_not_overrule_the_problem_type_or_several_labels(self, bert):
        identity = {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}
        change_config(bert, **identity)
        assert load_config(bert).problem_type is None
        change_config(bert, id2label={"0": "x"}, label2id={"x": 0}, problem_type="multi_label_classification")
        assert load_config(bert).problem_type == "multi_label_classification"

    def test_another_function_is_refused(self, bert):
        stated = {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}}
        change_config(bert, id2label={"0": "x"}, label2id={"x": 0}, **stated)
        assert "Tanh, which is not computed here; state Identity or Sigmoid" in refusal(bert)

    def test_a_packed_model_hears_it_too(self, tmp_path):
        write_text(tmp_path, id2label={0: "score"}, label2id={"score": 0})
        change_config(tmp_path, sbert_ce_default_activation_function="torch.nn.modules.linear.Identity")
        model = load(tmp_path, "cpu", "fp32")
        assert model.info.is_score
        np.testing.assert_array_equal(model(TEXTS).scores, model(TEXTS).logits)
