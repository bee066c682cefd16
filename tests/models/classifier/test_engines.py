"""A network of transformers computed by OpenVINO answers as torch does, or is left to torch."""

import logging
import sys

import numpy as np
import pytest
import torch
from transformers import (
    BertTokenizer,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    MixtralConfig,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from fewshard_core.values import PixelArray
from fewshard_models import load
from fewshard_models.classifier import engines
from fewshard_models.classifier.load import from_checkpoint, load_checkpoint
from fewshard_models.errors import CheckpointError
from fewshard_models.tuning.choice import Candidate, decide

WORDS = ["the", "film", "is", "good", "bad", "not", "very"]
TEXTS = ["good", "the film is not very good", "bad " * 40, "very very good film", "is the film bad"]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    BertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}).save_pretrained(folder)
    torch.manual_seed(3)
    config = DebertaV2Config(
        vocab_size=len(pieces),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        type_vocab_size=2,
        pad_token_id=0,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=8,
        max_relative_positions=-1,
        initializer_range=0.3,
    )
    DebertaV2ForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image")
    torch.manual_seed(3)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=32,
        patch_size=8,
        initializer_range=0.3,
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def images():
    random = np.random.default_rng(0)
    return [PixelArray(random.integers(0, 256, (size, 32, 3), dtype=np.uint8)) for size in (32, 20, 50)]


@pytest.fixture(scope="module")
def compiled(text):
    return load(text, "cpu", "fp32", engine="openvino")


@pytest.mark.parametrize("inputs", [TEXTS, TEXTS[:1], [*TEXTS[:2], ("good", "bad film")]])
def test_texts_of_any_length_and_number(text, compiled, inputs):
    expected = load(text, "cpu", "fp32", engine="torch")(inputs).logits
    assert np.abs(compiled(inputs).logits - expected).max() < 1e-4 * max(1, np.abs(expected).max())


def test_its_description_says_so(compiled):
    execution = compiled.info.execution
    assert (execution.engine, execution.engine_reason) == ("openvino", "asked for")


def test_images(image):
    expected = load(image, "cpu", "fp32", engine="torch")(images()).logits
    found = load(image, "cpu", "fp32", engine="openvino")(images()).logits
    assert np.abs(found - expected).max() < 1e-4 * max(1, np.abs(expected).max())


def test_the_weights_are_held_once(compiled):
    assert {parameter.device.type for parameter in compiled.network.parameters()} == {"meta"}


def test_no_telemetry(compiled):
    """Importing OpenVINO would write an identifier below the home directory, and report it."""
    assert sys.modules["openvino_telemetry"] is None


def test_auto_is_torch_where_nothing_is_measured(text):
    assert load(text, "cpu", "fp32").info.execution.engine == "torch"


@pytest.mark.parametrize("faster", engines.ENGINES)
def test_auto_takes_the_faster_and_remembers_it(text, monkeypatch, tmp_path, faster):
    timed = []

    def time(model, compiled, items):
        timed.append(model)
        rates = {name: {1: 1.0, 8: 2.0 if name == faster else 1.0} for name in engines.ENGINES}
        return decide([Candidate(name, rates[name]) for name in engines.ENGINES])

    monkeypatch.setattr(engines, "_timed", time)
    monkeypatch.setenv("FEWSHARD_MEASURE", "1")
    monkeypatch.setenv("FEWSHARD_CACHE", str(tmp_path))
    for _ in range(2):
        model = load(text, "cpu", "fp32")
        assert model.info.execution.engine == faster
        assert model.info.execution.engine_reason.startswith("measured")
    assert len(timed) == 1


def test_another_answer_is_refused(text, monkeypatch, caplog, tmp_path):
    compile_network = engines.openvino_network.compile_network

    def another(*arguments):
        compiled = compile_network(*arguments)
        return lambda **inputs: engines.openvino_network.Output(compiled(**inputs).logits + 0.1)

    monkeypatch.setattr(engines.openvino_network, "compile_network", another)
    with pytest.raises(CheckpointError, match=r"answers otherwise than torch: a logit is off by 0\.1"):
        load(text, "cpu", "fp32", engine="openvino")
    monkeypatch.setenv("FEWSHARD_MEASURE", "1")
    monkeypatch.setenv("FEWSHARD_CACHE", str(tmp_path))
    with caplog.at_level(logging.WARNING):
        assert load(text, "cpu", "fp32").info.execution.engine == "torch"
    assert "runs in torch: OpenVINO answers otherwise" in caplog.text


def test_what_openvino_is_not_asked_to_compute(text, monkeypatch):
    with pytest.raises(CheckpointError, match="FewshardTextForSequenceClassification has kernels of its own"):
        load("zoo:sst2-narrow", "cpu", "fp32", engine="openvino")
    model = from_checkpoint(load_checkpoint(text), "text", "cpu", "fp32")
    monkeypatch.setattr(model.network, "config", MixtralConfig(num_local_experts=4))
    assert "experts" in engines._obstacle(model)
    monkeypatch.setattr(engines.openvino_network, "is_installed", lambda: False)
    with pytest.raises(CheckpointError, match=r"pip install 'fewshard\[openvino\]'"):
        load(text, "cpu", "fp32", engine="openvino")


def test_an_unknown_engine_is_refused(text):
    with pytest.raises(ValueError, match="there is no engine 'tensorrt'; there are auto, torch, openvino"):
        load(text, engine="tensorrt")
