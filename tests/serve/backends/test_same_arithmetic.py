"""The server's process, the evaluation and the Python API give equal logits for the same rows."""

import numpy as np
import pytest
import torch
from transformers import BertTokenizer, DebertaV2Config, DebertaV2ForSequenceClassification

import fewshard_models
from fewshard_core.values import PixelArray, TextInput
from fewshard_models.evaluation import tasks
from fewshard_models.evaluation.accuracy import drawn_images, evaluate
from fewshard_serve.backends.child_process import Loading
from fewshard_serve.backends.process import ModelProcess

WORDS = ["the", "film", "is", "good", "bad", "not", "very"]
TEXTS = ["the film is good", "bad", "not very good " * 40, "the film"]
PAIRS = [("the film", "is bad"), ("good", "not very good not very good")]
LOADER = "fewshard_serve.backends.load:load_model"


@pytest.fixture(scope="module")
def process():
    process = ModelProcess(num_threads=1)
    yield process
    process.close()


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the process has: with another number, sums are in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    """A text classifier of transformers that has token types and is not converted to our encoder."""
    folder = tmp_path_factory.mktemp("padded")
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
        id2label={0: "negative", 1: "positive"},
    )
    network = DebertaV2ForSequenceClassification(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    network.save_pretrained(folder)
    return folder


def served(process, path, inputs, dtype="fp32"):
    remote = process.load(Loading(LOADER, str(path), str(path), "cpu", dtype))
    return remote.run(remote.prepare(inputs)).logits


@pytest.mark.parametrize("path", ["zoo:sst2-moe", "zoo:sst2-narrow"])
def test_packed_texts(process, path):
    offline = fewshard_models.load(path, "cpu", "fp32")([*TEXTS, *PAIRS]).logits
    inputs = [*(TextInput(text) for text in TEXTS), *(TextInput(*pair) for pair in PAIRS)]
    assert np.array_equal(offline, served(process, path, inputs))


@pytest.mark.parametrize("has_cache", [True, False])
def test_what_one_process_measured_the_other_runs(has_cache, tmp_path, monkeypatch):
    """The first to load chooses format and layouts: for all where there is a cache, else for its process."""
    monkeypatch.setenv("FEWSHARD_MEASURE", "1")
    monkeypatch.setenv("FEWSHARD_CACHE", str(tmp_path / "cache"))
    if not has_cache:
        (tmp_path / "cache").write_text("in the way of the folder")
    offline = fewshard_models.load("zoo:sst2-moe", "cpu", "auto")
    inputs = [TextInput(text) for text in TEXTS]
    if has_cache:
        process = ModelProcess(num_threads=1)
        try:
            answers = served(process, "zoo:sst2-moe", inputs, "auto")
        finally:
            process.close()
    else:
        answers = fewshard_models.load("zoo:sst2-moe", "cpu", "auto")(TEXTS).logits
    assert np.array_equal(offline(TEXTS).logits, answers)


def test_padded_texts_and_pairs_with_token_types(process, padded):
    model = fewshard_models.load(padded, "cpu", "fp32")
    offline = model([*TEXTS, *PAIRS]).logits
    inputs = [*(TextInput(text) for text in TEXTS), *(TextInput(*pair) for pair in PAIRS)]
    assert np.array_equal(offline, served(process, padded, inputs))
    items = model.prepare(inputs)
    assert items[4].features.types == [0, 0, 0, 0, 1, 1, 1]
    assert items[2].num_tokens == 64, "a long text is cut at the model's positions"


def test_images(process):
    images = drawn_images(5)
    offline = fewshard_models.load("zoo:cifar10-narrow", "cpu", "fp32")(images).logits
    assert np.array_equal(
        offline, served(process, "zoo:cifar10-narrow", [PixelArray(each) for each in images])
    )


def test_the_evaluation_is_of_what_is_served(process, padded, monkeypatch):
    """A long text whose end says the opposite: cut where the server cuts it."""
    texts = [*TEXTS, "good " * 61 + "bad " * 200]
    labels = np.zeros(len(texts), np.int64)
    held_out = tasks.HeldOut("five", texts, labels, ("negative", "positive"))
    monkeypatch.setattr("fewshard_models.evaluation.accuracy.held_out", lambda task, limit: held_out)
    answers = served(process, padded, [TextInput(text) for text in texts])
    assert np.array_equal(evaluate(padded).predictions, answers.argmax(axis=1))
