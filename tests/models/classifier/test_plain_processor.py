"""Plain image processors give the very numbers of transformers', and need nothing of it."""

import json
import pickle
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor

from fewshard_models.classifier.image_processor import ImageProcessor, load_processor, resized_size
from fewshard_models.classifier.plain_processor import PlainProcessor

PLAIN = {
    "vit": {"image_processor_type": "ViTImageProcessor"},
    "imagenet": {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 48, "width": 40},
        "resample": 3,
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    },
    "crop": {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 37}, "crop_size": 32},
    "bytes": {"image_processor_type": "ViTImageProcessor", "do_rescale": False, "do_normalize": False},
    "as it is": {"image_processor_type": "ViTImageProcessor", "do_resize": False},
}
OTHER = {
    "its own resizing": {"image_processor_type": "ConvNextImageProcessor"},
    "crop of more than there is": {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 30},
        "crop_size": 32,
    },
}
SHAPES = [(1, 1), (1, 5), (37, 91), (91, 37), (224, 224), (3, 400)]


def load(directory, settings, channels=3):
    (directory / "preprocessor_config.json").write_text(json.dumps(settings))
    config = SimpleNamespace(num_channels=channels, model_type="vit")
    return load_processor(directory, config, lambda pixel_values: None)


def image_of(width, height):
    pixels = np.random.default_rng([width, height]).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("name", PLAIN)
def test_it_gives_the_numbers_and_sizes_of_transformers(tmp_path, name):
    plain = load(tmp_path, PLAIN[name])
    assert isinstance(plain, PlainProcessor)
    reference = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    for shape in SHAPES:
        made = reference(images=image_of(*shape), return_tensors="np")["pixel_values"][0]
        found = plain(image_of(*shape))["pixel_values"]
        assert found.dtype == np.float32
        assert np.array_equal(found, made.astype(np.float32)), shape
        assert plain.resized_size(*shape) == resized_size(reference, *shape)


def test_an_image_of_one_channel(tmp_path):
    settings = PLAIN["vit"] | {"image_mean": 0.4, "image_std": 0.3}
    plain = load(tmp_path, settings, channels=1)
    assert isinstance(plain, PlainProcessor)
    reference = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    grey = image_of(50, 60).convert("L")
    made = reference(images=grey, return_tensors="np")["pixel_values"][0]
    assert np.array_equal(plain(grey)["pixel_values"], made.astype(np.float32))


@pytest.mark.parametrize("name", OTHER)
def test_what_does_more_stays_with_transformers(tmp_path, name):
    assert isinstance(load(tmp_path, OTHER[name]), ImageProcessor)


def test_it_is_used_without_transformers(tmp_path):
    (tmp_path / "plain").write_bytes(pickle.dumps(load(tmp_path, PLAIN["crop"])))
    code = (
        "import pickle, sys; from PIL import Image; plain = pickle.load(open(sys.argv[1], 'rb')); "
        "plain(Image.new('RGB', (50, 60))); print({'torch', 'transformers'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, tmp_path / "plain"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == ["set()"]
