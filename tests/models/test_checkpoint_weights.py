"""What is loaded is what the files say: weights missing, unread or of another kind are refused by name."""

import json

import numpy as np
import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from fewshard_models.classifier.load import from_checkpoint, load, load_checkpoint
from fewshard_models.errors import CheckpointError
from fewshard_models.weight_files import INDEX, SINGLE
from small_checkpoints import TEXTS, change_config, change_weights, reference, served, write_text

ROBERTAS = {"roberta": tf.RobertaConfig, "xlm-roberta": tf.XLMRobertaConfig, "camembert": tf.CamembertConfig}


T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
T5 |= {"eos_token_id": 3, "decoder_start_token_id": 0}


@pytest.fixture
def bert(tmp_path):
    return write_text(tmp_path)


@pytest.fixture
def deberta(tmp_path):
    """A network of transformers' own, which is not converted."""
    return write_text(tmp_path, tf.DebertaV2Config)


def refusal(directory):
    with pytest.raises(CheckpointError) as caught:
        load(directory, "cpu", "fp32")
    return str(caught.value)


@pytest.mark.parametrize("kind", ROBERTAS)
def test_a_pooler_that_the_head_does_not_use_changes_nothing(kind, tmp_path):
    directory = write_text(tmp_path, ROBERTAS[kind])
    right = reference(directory)
    np.testing.assert_allclose(served(directory), right, atol=1e-4)
    pooler = {
        "roberta.pooler.dense.weight": torch.randn(32, 32),
        "roberta.pooler.dense.bias": torch.randn(32),
    }
    change_weights(directory, lambda weights: weights.update(pooler))
    np.testing.assert_allclose(served(directory), right, atol=1e-4)


@pytest.mark.parametrize("family", ["bert", "deberta"])
class TestBothPathsRefuseAlike:
    """BERT is converted to our encoder, DeBERTa is not; the checks are the same."""

    @pytest.fixture
    def directory(self, family, request):
        return request.getfixturevalue(family)

    def prefix(self, directory):
        return json.loads((directory / "config.json").read_text())["model_type"].split("-")[0]

    def test_rows_added(self, directory):
        name = f"{self.prefix(directory)}.embeddings.word_embeddings.weight"
        change_weights(
            directory, lambda weights: weights.update({name: torch.cat([weights[name], torch.ones(1, 32)])})
        )
        assert f"{name} is [26, 32], the network's [25, 32]; correct vocab_size" in refusal(directory)

    def test_a_head_of_another_width(self, directory):
        change_config(directory, id2label={"0": "ant", "1": "bee"})
        assert "classifier.weight is [3, 32], the network's [2, 32]" in refusal(directory)
        assert "id2label (one name an output)" in refusal(directory)

    def test_heads_cut_in_place(self, directory):
        names = [name for name in load_file(directory / SINGLE) if "layer.0.attention.self." in name]

        def cut(weights):
            for name in names:
                weights[name] = weights[name][:16]

        change_weights(directory, cut)
        assert f"{sorted(names)[0]} is [16" in refusal(directory)
        assert "heads cut in place need sizes that say so" in refusal(directory)

    def test_a_missing_weight(self, directory):
        change_weights(directory, lambda weights: weights.pop("classifier.bias"))
        assert "lacks weights of the right shape for classifier.bias; is it a classifier's" in refusal(
            directory
        )

    def test_a_weight_that_nobody_reads(self, directory):
        name = f"{self.prefix(directory)}.encoder.layer.0.adapter.weight"
        change_weights(directory, lambda weights: weights.update({name: torch.ones(3)}))
        assert f"its network does not read: {name}; the class in" in refusal(directory)

    def test_whole_numbers_in_place_of_fractions(self, directory):
        name = f"{self.prefix(directory)}.encoder.layer.0.output.dense.weight"
        change_weights(directory, lambda weights: weights.update({name: weights[name].to(torch.int8)}))
        assert f"stores {name} as I8, where the network has fractions" in refusal(directory)

        def shorten(weights):
            for name in list(weights):
                weights[name.removeprefix(f"{self.prefix(directory)}.")] = weights.pop(name)

        change_weights(directory, shorten)
        short = "encoder.layer.0.output.dense.weight"
        assert f"stores {short} as I8, where the network has fractions" in refusal(directory)

    def test_two_names_of_one_weight(self, directory):
        short = "encoder.layer.0.output.dense.weight"
        name = f"{self.prefix(directory)}.{short}"
        change_weights(directory, lambda weights: weights.update({short: weights[name] + 1}))
        assert f"holds {name} and {short}, which are one weight" in refusal(directory)

    def test_what_is_known_to_be_harmless(self, directory):
        right = reference(directory)
        harmless = {
            f"{self.prefix(directory)}.embeddings.position_ids": torch.arange(64)[None],
            "lm_head.bias": torch.ones(3),
            "cls.predictions.bias": torch.ones(3),
            "loss_fct.weight": torch.ones(3),
            "decoder.weight": torch.ones(3, 3),
            "decoder.bias": torch.ones(3),
            "layers.0.self_attn.rotary_emb.cos_cached": torch.ones(3),
            "layers.0.self_attn.rotary_emb.sin_cached": torch.ones(3),
        }
        change_weights(directory, lambda weights: weights.update(harmless))
        np.testing.assert_allclose(served(directory), right, atol=1e-4)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
    def test_any_kind_of_fractions_is_read(self, directory, dtype):
        def store(weights):
            for name in weights:
                weights[name] = weights[name].to(dtype)

        change_weights(directory, store)
        np.testing.assert_allclose(served(directory), reference(directory), atol=1e-4)

    def test_metadata_do_not_matter(self, directory):
        right = reference(directory)
        weights = load_file(directory / SINGLE)
        for metadata in (None, {"framework": "pt", "note": "made by hand"}):
            save_file(weights, directory / SINGLE, metadata)
            np.testing.assert_allclose(served(directory), right, atol=1e-4)


def test_names_of_old_checkpoints_are_read(bert):
    right = reference(bert)

    def rename(weights):
        for name in [name for name in weights if "LayerNorm" in name]:
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            )
            weights[old] = weights.pop(name)

    change_weights(bert, rename)
    np.testing.assert_allclose(served(bert), right, atol=1e-4)


def test_names_without_the_models_prefix_are_read(bert):
    right = reference(bert)

    def rename(weights):
        for name in list(weights):
            weights[name.removeprefix("bert.")] = weights.pop(name)

    change_weights(bert, rename)
    np.testing.assert_allclose(served(bert), right, atol=1e-4)


@pytest.mark.parametrize(
    ("config_class", "fields"),
    [
        (tf.T5Config, T5),
        (tf.AlbertConfig, {"embedding_size": 16}),
    ],
    ids=["T5", "ALBERT"],
)
def test_tied_and_shared_weights_are_stored_once(config_class, fields, tmp_path):
    directory = write_text(tmp_path, config_class, **fields)
    np.testing.assert_allclose(served(directory), reference(directory), atol=1e-4)


class TestDirectoriesOfOtherKinds:
    @pytest.mark.parametrize(
        ("file", "held"),
        [
            ("model.gguf", "GGUF weights only"),
            ("onnx/model.onnx", "an ONNX graph only"),
            ("tf_model.h5", "TensorFlow weights only"),
            ("flax_model.msgpack", "Flax weights only"),
            ("openvino_model.xml", "an OpenVINO graph only"),
            ("pytorch_model.bin", "pickle weights only"),
            ("model.fp16.safetensors", "under a name that transformers reads"),
        ],
    )
    def test_they_are_named(self, file, held, bert):
        (bert / SINGLE).unlink()
        (bert / file).parent.mkdir(exist_ok=True)
        (bert / file).write_bytes(b"x")
        assert held in refusal(bert)

    @pytest.mark.parametrize("has_base", [True, False])
    def test_an_adapter_is_refused_even_beside_whole_weights(self, has_base, bert):
        (bert / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        if not has_base:
            (bert / SINGLE).rename(bert / "adapter_model.safetensors")
        assert "has a PEFT adapter; merge it into its base model: model.merge_and_unload()" in refusal(bert)

    def test_a_pointer_of_git_lfs(self, bert):
        (bert / SINGLE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
        assert "git lfs pull" in refusal(bert)


class TestIndexes:
    """model.safetensors.index.json says which file holds which tensor."""

    @pytest.fixture
    def sharded(self, bert):
        weights = load_file(bert / SINGLE)
        names = sorted(weights)
        parts = {"a.safetensors": names[:9], "b.safetensors": names[9:]}
        for file, held in parts.items():
            save_file({name: weights[name] for name in held}, bert / file, {"format": "pt"})
        (bert / SINGLE).unlink()
        self.write(bert, {name: file for file, held in parts.items() for name in held})
        return bert

    def write(self, directory, weight_map):
        document = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(document))

    def read(self, directory):
        return json.loads((directory / INDEX).read_text())["weight_map"]

    def test_a_whole_one_is_read(self, sharded):
        np.testing.assert_allclose(served(sharded), reference(sharded), atol=1e-4)

    def test_a_single_file_goes_first_as_in_transformers(self, sharded):
        write_text(sharded)
        self.write(sharded, {"classifier.bias": "nowhere.safetensors"})
        np.testing.assert_allclose(served(sharded), reference(sharded), atol=1e-4)

    @pytest.mark.parametrize("file", ["../a.safetensors", "/etc/a.safetensors", "sub/../../a.safetensors"])
    def test_files_elsewhere_are_refused(self, file, sharded):
        self.write(sharded, {**self.read(sharded), "classifier.bias": file})
        assert f"names files outside the directory: {file}" in refusal(sharded)

    def test_a_missing_file(self, sharded):
        (sharded / "b.safetensors").unlink()
        assert "lacks b.safetensors, which its index names" in refusal(sharded)

    def test_a_tensor_in_two_files(self, sharded):
        whole = {**load_file(sharded / "b.safetensors"), **load_file(sharded / "a.safetensors")}
        save_file(whole, sharded / "b.safetensors")
        assert "is in a.safetensors and in b.safetensors" in refusal(sharded)

    def test_a_tensor_that_is_not_where_the_index_says(self, sharded):
        index = self.read(sharded)
        name = next(name for name, file in index.items() if file == "a.safetensors")
        self.write(sharded, {**index, name: "b.safetensors"})
        assert f"not in their files: {name} (in b.safetensors)" in refusal(sharded)

    @pytest.mark.parametrize(
        "text", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {}}']
    )
    def test_one_that_is_none(self, text, sharded):
        (sharded / INDEX).write_text(text)
        assert f"{INDEX} is damaged" in refusal(sharded)


def test_a_network_larger_than_its_files_is_refused_before_it_takes_memory(bert):
    change_config(bert, vocab_size=2**27, hidden_size=4096)
    assert "the two do not belong together" in refusal(bert)


@pytest.mark.parametrize("has_cross_attention", [False, True])
def test_a_decoder_of_the_bert_family_is_not_converted(has_cross_attention, tmp_path):
    directory = write_text(tmp_path, is_decoder=True, add_cross_attention=has_cross_attention)
    # Its first token, which the head reads, sees no other: all texts are answered alike.
    right = reference(directory, differ=False)
    model = from_checkpoint(load_checkpoint(directory), "m", "cpu", "fp32")
    np.testing.assert_allclose(model(TEXTS).logits, right, atol=1e-4)
    assert "gives every input the same answer" in refusal(directory)


def test_cross_attention_without_a_decoder_is_refused(bert):
    change_config(bert, add_cross_attention=True)
    assert "cannot be loaded" in refusal(bert)


def test_an_unknown_activation_is_named(bert):
    change_config(bert, hidden_act="snake")
    assert "snake" in refusal(bert)


@pytest.mark.parametrize("family", ["bert", "deberta"])
def test_a_file_that_is_overwritten_does_not_change_a_loaded_model(family, request):
    directory = request.getfixturevalue(family)
    model = load(directory, "cpu", "fp32")
    before = model(TEXTS).logits
    size = (directory / SINGLE).stat().st_size
    with (directory / SINGLE).open("r+b") as weights:
        weights.seek(size // 8)
        weights.write(b"\0" * (size - size // 8))
    np.testing.assert_array_equal(model(TEXTS).logits, before)
