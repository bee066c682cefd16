"""`fewshard_models.load` and what it returns: order, kinds of input, batches, scores and errors."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import fewshard_models
from fewshard_core.values import Item, TextInput
from fewshard_models.checkpoint import ZOO
from fewshard_models.classifier.batching import batches
from fewshard_models.errors import CheckpointError, UnusableInput

TEXTS = ["two hours of noise", "brilliant", "a warm and funny film that stays with you " * 20]


@pytest.fixture(scope="module")
def text():
    return fewshard_models.load("zoo:sst2-narrow", device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def image():
    return fewshard_models.load(ZOO / "cifar10-narrow", device="cpu", dtype="fp32")


def test_importing_the_package_loads_no_torch():
    code = (
        "import sys, fewshard_models, fewshard_models.classifier.batching, fewshard_models.errors\n"
        "from fewshard_models import Classifier, Predictions\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names_of_the_package():
    for name in fewshard_models.__all__:
        assert getattr(fewshard_models, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fewshard_models.nothing


def test_answers_come_in_the_order_of_the_inputs(text):
    found = text(TEXTS)
    assert len(found) == 3
    assert found.labels == ["negative", "positive", "positive"]
    assert found.logits.dtype == found.scores.dtype == np.float32
    np.testing.assert_allclose(found.scores.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(text(TEXTS[::-1]).logits[::-1], found.logits, atol=1e-5)
    assert (text.info.name, text.info.task) == ("sst2-narrow", "text")


def test_no_inputs_have_no_answers(text):
    found = text([])
    assert (len(found), found.scores.shape) == (0, (0, 2))


def test_a_pair_is_not_its_texts_joined(text):
    pair, joined = text([("warm", "funny")]).logits, text(["warm funny"]).logits
    assert np.abs(pair - joined).max() > 1e-3
    with pytest.raises(TypeError, match="give a str or a"):
        text([("one", "two", "three")])


def test_a_long_text_is_cut_or_refused(text):
    long = "fine " * 2000
    assert text([long]).labels == text(["fine " * 1000]).labels
    with pytest.raises(UnusableInput, match=r"item 1: 2002 tokens, over the model's \d+"):
        text(["short", long], truncate=False)


def test_an_image_is_a_path_bytes_or_an_array(image, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    file, buffer = tmp_path / "a.png", io.BytesIO()
    Image.fromarray(pixels).save(file)
    Image.fromarray(pixels).save(buffer, "PNG")
    found = image([pixels, file, str(file), buffer.getvalue()]).logits
    np.testing.assert_allclose(found, np.repeat(found[:1], 4, axis=0), atol=1e-6)
    np.testing.assert_allclose(image(pixels[None]).logits, found[:1], atol=1e-5)


def test_what_is_no_image_is_refused(image, tmp_path):
    with pytest.raises(TypeError, match="uint8 array"):
        image([np.zeros((4, 4), np.uint8)])
    with pytest.raises(UnusableInput, match="item 0: not an image"):
        image([b"no image"])
    with pytest.raises(UnusableInput, match="item 0: this model classifies images"):
        image([TextInput("a text")])
    with pytest.raises(FileNotFoundError):
        image([tmp_path / "none.png"])


def test_batches_keep_both_bounds_and_every_row():
    items = [Item(None, tokens) for tokens in (5, 1, 9, 3, 3, 20)]
    assert list(batches(items, max_tokens=8, max_items=2)) == [[1, 3], [4, 0], [2], [5]]
    assert list(batches([], 8, 2)) == []
    images = [Item(None, 0)] * 5
    assert [len(rows) for rows in batches(images, 8, 2)] == [2, 2, 1]


def test_a_checkpoint_that_is_not_there_is_said():
    with pytest.raises(CheckpointError, match="the bundled zoo has no 'nothing'"):
        fewshard_models.load("zoo:nothing")
