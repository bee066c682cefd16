"""Damaged and contradictory checkpoint files: refused by our own error, or what loads also answers.

FEWSHARD_FUZZ_EXAMPLES sets how many directories each test makes up; `make fuzz` makes many. A load may
take no more than MEMORY beyond what the process has.
"""

import json
import os
import resource
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import psutil
import pytest
import transformers as tf
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from fewshard_models.classifier.load import load
from fewshard_models.errors import ModelsError
from small_checkpoints import SIZES, TEXTS, write_network, write_text

tf.utils.logging.disable_progress_bar()
MEMORY = 2 * 2**30
EXAMPLES = int(os.environ.get("FEWSHARD_FUZZ_EXAMPLES", "8"))
settings.register_profile(
    "files",
    deadline=None,
    # A directory that fails is told as it is: making it smaller would take minutes.
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,
        HealthCheck.data_too_large,
    ],
)
FILES = settings(settings.get_profile("files"), max_examples=EXAMPLES)
MANY = settings(settings.get_profile("files"), max_examples=50 * EXAMPLES)

numbers = st.sampled_from([0, 1, -1, 2, 3, 7, 255, 4096, 10**6, 10**9, 2**31, 2**63, 2**64, 10**30])
values = st.recursive(
    st.none()
    | st.booleans()
    | numbers
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["gelu", "absolute", "float16", "cls", "../..", "[PAD]", "bert", "vit"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


def files_of(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """Converted to our encoder."""
    return files_of(write_text(tmp_path_factory.mktemp("bert"), num_hidden_layers=1))


@pytest.fixture(scope="module")
def electra(tmp_path_factory):
    """Run by transformers' own network."""
    directory = tmp_path_factory.mktemp("electra")
    return files_of(write_text(directory, tf.ElectraConfig, num_hidden_layers=1, embedding_size=16))


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    directory = tmp_path_factory.mktemp("vit")
    config = tf.ViTConfig(**SIZES, image_size=32, patch_size=8)
    tf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(directory)
    return files_of(write_network(directory, tf.AutoModelForImageClassification, config))


def image_file(format: str) -> bytes:
    """An image of the network's own size, which it takes even if nothing resizes it."""
    out = BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, format)
    return out.getvalue()


IMAGE = image_file("PNG")


@contextmanager
def limited_memory() -> Iterator[None]:
    """No allocation succeeds that takes this process beyond MEMORY more of address space than it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def require_right_or_refused(files: dict[str, bytes], inputs: list) -> None:
    """Load, check and ask a directory of these files: an error is ours, and an answer is finite."""
    with tempfile.TemporaryDirectory() as name, limited_memory():
        for file, content in files.items():
            (Path(name) / file).write_bytes(content)
        try:
            model = load(name, "cpu", "fp32")
            model.self_check()
        except ModelsError as refused:
            told = str(refused)
            if "allocat" in told or "MemoryError" in told:
                pytest.fail(f"refused only when memory was out: {told}")
            return
        answers = model(inputs)
        assert answers.logits.shape == (len(inputs), len(model.info.labels))
        assert np.isfinite(answers.logits).all()


@st.composite
def changed_json(draw: st.DrawFn, content: bytes) -> bytes:
    """A document with a few of its values replaced or removed, at any depth, or cut short."""
    document = json.loads(content)
    for _ in range(draw(st.integers(1, 3))):
        place = document
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and place[key] and draw(st.booleans()):
                place = place[key]
                continue
            if draw(st.integers(0, 4)):
                place[key] = draw(values)
            else:
                del place[key]
            break
    text = json.dumps(document).encode()
    return text if draw(st.integers(0, 9)) else text[: draw(st.integers(0, len(text)))]


@st.composite
def changed_weights(draw: st.DrawFn, content: bytes) -> bytes:
    """A safetensors file with another header, another length, or other bytes."""
    length = struct.unpack("<Q", content[:8])[0]
    header, data = content[8 : 8 + length], content[8 + length :]
    kind = draw(st.sampled_from(["header", "length", "bytes", "cut"]))
    if kind == "header":
        header = draw(changed_json(header))
        return struct.pack("<Q", len(header)) + header + data
    if kind == "length":
        return struct.pack("<Q", draw(st.integers(0, 2**64 - 1) | st.integers(0, 2 * length))) + content[8:]
    if kind == "cut":
        return content[: draw(st.integers(0, len(content)))]
    changed = bytearray(content)
    patch = draw(st.binary(min_size=1, max_size=16))
    place = draw(st.integers(0, len(content) - 1) | st.integers(0, length))
    changed[place : place + len(patch)] = patch
    return bytes(changed)


@FILES
@given(data=st.data())
def test_configurations_of_a_converted_network(bert, data):
    require_right_or_refused({**bert, "config.json": data.draw(changed_json(bert["config.json"]))}, TEXTS)


@FILES
@given(data=st.data())
def test_configurations_of_transformers_own_network(electra, data):
    require_right_or_refused(
        {**electra, "config.json": data.draw(changed_json(electra["config.json"]))}, TEXTS
    )


@FILES
@given(data=st.data())
def test_configurations_of_an_image_network(vit, data):
    require_right_or_refused({**vit, "config.json": data.draw(changed_json(vit["config.json"]))}, [IMAGE])


@FILES
@given(data=st.data())
def test_tokenizers(bert, data):
    file = data.draw(st.sampled_from(["tokenizer_config.json", "tokenizer.json"]))
    require_right_or_refused({**bert, file: data.draw(changed_json(bert[file]))}, TEXTS)


@FILES
@given(data=st.data())
def test_preprocessors(vit, data):
    file = "preprocessor_config.json"
    require_right_or_refused({**vit, file: data.draw(changed_json(vit[file]))}, [IMAGE])


@FILES
@given(data=st.data())
def test_weights(bert, data):
    file = "model.safetensors"
    require_right_or_refused({**bert, file: data.draw(changed_weights(bert[file]))}, TEXTS)


@pytest.fixture(scope="module")
def image_model(vit, tmp_path_factory):
    directory = tmp_path_factory.mktemp("loaded")
    for file, content in vit.items():
        (directory / file).write_bytes(content)
    return load(directory, "cpu", "fp32")


@MANY
@given(data=st.data())
def test_images(image_model, data):
    changed = bytearray(image_file(data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP"]))))
    patch = data.draw(st.binary(max_size=12))
    place = data.draw(st.integers(0, min(60, len(changed))) | st.integers(0, len(changed)))
    changed[place : place + len(patch)] = patch
    with limited_memory():
        try:
            answers = image_model([bytes(changed)])
        except ModelsError:
            return
        assert np.isfinite(answers.logits).all()


@pytest.mark.parametrize("dtype", ["F32", "I8"])
def test_a_header_that_claims_ten_gigabytes(bert, dtype):
    """Such files are made of a header alone, so that refusing them must not wait for the data."""
    shape, size = [10 * 2**30 // 4 // 32, 32], 10 * 2**30
    claimed = {
        "bert.embeddings.word_embeddings.weight": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}
    }
    header = json.dumps(claimed).encode()
    require_right_or_refused(
        {**bert, "model.safetensors": struct.pack("<Q", len(header)) + header + b"x"}, TEXTS
    )
