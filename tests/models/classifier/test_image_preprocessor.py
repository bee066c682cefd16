"""Images of all shapes and kinds through image processors of transformers, as by transformers itself."""

import io
import json
import logging
import pickle
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image, ImageFile
from transformers.models.auto.image_processing_auto import get_image_processor_class_from_name

from fewshard_core.values import EncodedImage, PixelArray
from fewshard_models.classifier import image_preprocessor
from fewshard_models.classifier.image_processor import resized_size
from fewshard_models.classifier.load import load
from fewshard_models.conformance.image_checkpoints import randomise
from fewshard_models.errors import CheckpointError, UnusableInput
from fewshard_models.image_preprocessing import load_preprocessing

LABELS = {"id2label": {0: "red", 1: "green", 2: "blue"}, "label2id": {"red": 0, "green": 1, "blue": 2}}
SQUARE = {"height": 32, "width": 32}
KEEPS_RATIO = tf.ViTImageProcessorPil(size={"shortest_edge": 32})
CROPS = tf.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE)


def resnet(**fields: Any) -> tf.PreTrainedConfig:
    return tf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], **LABELS, **fields)


VIT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 32,
    "patch_size": 8,
}


def vit(**fields: Any) -> tf.PreTrainedConfig:
    return tf.ViTConfig(**VIT, **LABELS, **fields)


def checkpoint(directory: Path, config: tf.PreTrainedConfig, processor: Any) -> Path:
    torch.manual_seed(0)
    randomise(tf.AutoModelForImageClassification.from_config(config)).save_pretrained(directory)
    if isinstance(processor, dict):
        (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    else:
        processor.save_pretrained(directory)
    return directory


def drawn(width: int, height: int) -> Image.Image:
    generator = np.random.default_rng(width * 100 + height)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def png(image: Image.Image) -> EncodedImage:
    data = io.BytesIO()
    image.save(data, "PNG")
    return EncodedImage(data.getvalue())


def reference(directory: Path, images: list[Image.Image]) -> np.ndarray:
    processor = tf.AutoImageProcessor.from_pretrained(directory)
    network = tf.AutoModelForImageClassification.from_pretrained(directory).eval()
    with torch.inference_mode():
        rows = [network(**processor(images=each, return_tensors="pt")).logits[0].numpy() for each in images]
    return np.stack(rows)


@pytest.fixture(scope="module")
def of_two_shapes(tmp_path_factory):
    """A network of any size behind a processor that keeps each image's ratio."""
    return checkpoint(tmp_path_factory.mktemp("shapes"), resnet(), KEEPS_RATIO)


@pytest.fixture(scope="module")
def cropped(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("cropped"), resnet(), CROPS)


SHAPES = [(50, 40), (1, 1), (50, 1), (50, 2), (50, 3), (50, 4), (1, 50), (3, 50), (4, 50), (3, 3)]


@pytest.mark.parametrize(
    "processor", [CROPS, tf.ViTImageProcessorPil(size=SQUARE)], ids=["crops", "squeezes"]
)
def test_images_a_few_pixels_high_are_not_taken_for_channels(processor, tmp_path):
    directory = checkpoint(tmp_path, resnet(), processor)
    images = [drawn(*shape) for shape in SHAPES]
    right = reference(directory, images)
    model = load(directory, "cpu", "fp32")
    np.testing.assert_allclose(model([png(each) for each in images]).logits, right, atol=1e-4)
    arrays = [PixelArray(np.asarray(each)) for each in images]
    np.testing.assert_allclose(model(arrays).logits, right, atol=1e-4)


def test_images_of_k_shapes_take_k_passes(of_two_shapes, monkeypatch, caplog):
    model = load(of_two_shapes, "cpu", "fp32")
    images = [drawn(*((50, 40), (40, 50))[at % 2]) for at in range(64)]
    items = model.prepare([PixelArray(np.asarray(each)) for each in images])
    sizes: list[int] = []
    forward = model.network.forward
    monkeypatch.setattr(
        model.network,
        "forward",
        lambda **given: (sizes.append(len(given["pixel_values"])), forward(**given))[1],
    )
    with caplog.at_level(logging.WARNING):
        found = model.run(items).logits
    assert sizes == [32, 32]
    assert not caplog.records
    np.testing.assert_allclose(found[:4], reference(of_two_shapes, images[:4]), atol=1e-4)
    np.testing.assert_allclose(found, np.concatenate([model.run([item]).logits for item in items]), atol=1e-4)


def test_a_pass_is_cut_where_its_input_would_be_too_large(of_two_shapes, monkeypatch):
    model = load(of_two_shapes, "cpu", "fp32")
    items = model.prepare([PixelArray(np.asarray(drawn(32, 32)))] * 5)
    whole = model.run(items).logits
    sizes: list[int] = []
    forward = model.network.forward
    monkeypatch.setattr("fewshard_models.classifier.image.MAX_PASS_VALUES", 2 * 3 * 32 * 32)
    monkeypatch.setattr(
        model.network,
        "forward",
        lambda **given: (sizes.append(len(given["pixel_values"])), forward(**given))[1],
    )
    np.testing.assert_allclose(model.run(items).logits, whole, atol=1e-5)
    assert sizes == [2, 2, 1]


def test_ready_made_pixels_of_every_shape_that_images_become_are_taken(of_two_shapes):
    model = load(of_two_shapes, "cpu", "fp32")
    images = [PixelArray(np.asarray(drawn(*size))) for size in ((50, 40), (40, 50))]
    made = [PixelArray(item.features["pixel_values"]) for item in model.prepare(images)]
    np.testing.assert_allclose(model(made).logits, model(images).logits, atol=1e-5)
    for shape in ((3, 31, 40), (1, 32, 32), (3, 32), (32, 32, 3)):
        with pytest.raises(UnusableInput, match=r"this model takes \[3, 32 or more, 32 or more\]"):
            model([PixelArray(np.zeros(shape, np.float32))])


@pytest.mark.parametrize(("width", "height"), [(1, 400), (400, 1), (3, 1200)])
def test_an_image_that_becomes_too_large_before_the_crop_is_refused_beforehand(
    width, height, tmp_path, monkeypatch
):
    processor = tf.CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    model = load(checkpoint(tmp_path, resnet(), processor), "cpu", "fp32")
    image = png(Image.new("RGB", (width, height)))
    monkeypatch.setattr(Image.Image, "resize", lambda *given, **options: pytest.fail("it was resized"))
    with pytest.raises(
        UnusableInput, match=rf"the image is {width} x {height} and would be .*89600.* over 4194304 pixels"
    ):
        model.prepare([image])


def test_ordinary_wide_images_are_not_refused(tmp_path):
    processor = tf.CLIPImageProcessorPil(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    model = load(checkpoint(tmp_path, resnet(), processor), "cpu", "fp32")
    assert len(model.prepare([png(Image.new("RGB", (1200, 20)))])) == 1


SIZES = {"shortest_edge": 24}
PROCESSORS = {
    "BeitImageProcessorPil": {"size": SQUARE},
    "BitImageProcessorPil": {"size": SIZES, "crop_size": SQUARE},
    "CLIPImageProcessorPil": {"size": SIZES, "crop_size": SQUARE},
    "ConvNextImageProcessorPil": {"size": SIZES},
    "DeiTImageProcessorPil": {"size": SQUARE},
    "DetrImageProcessorPil": {"size": {"shortest_edge": 24, "longest_edge": 40}},
    "DonutImageProcessorPil": {"size": {"height": 40, "width": 24}},
    "EfficientNetImageProcessorPil": {"size": SQUARE},
    "LevitImageProcessorPil": {"size": SIZES, "crop_size": SQUARE},
    "MobileNetV1ImageProcessorPil": {"size": SIZES, "crop_size": SQUARE},
    "MobileNetV2ImageProcessorPil": {"size": SIZES, "crop_size": SQUARE},
    "MobileViTImageProcessorPil": {"size": SIZES, "crop_size": SQUARE},
    "PerceiverImageProcessorPil": {"size": SQUARE, "crop_size": SQUARE},
    "PoolFormerImageProcessorPil": {"size": SIZES, "crop_size": SQUARE},
    "PvtImageProcessorPil": {"size": SQUARE},
    "SegformerImageProcessorPil": {"size": SQUARE},
    "Siglip2ImageProcessorPil": {"patch_size": 8, "max_num_patches": 16},
    "SiglipImageProcessorPil": {"size": SQUARE},
    "TextNetImageProcessorPil": {"size": SIZES},
    "ViTImageProcessorPil": {"size": SIZES},
    "ViTImageProcessor": {"size": {"max_height": 24, "max_width": 40}},
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_size_after_resizing_is_known_before(name, monkeypatch):
    kind = get_image_processor_class_from_name(name.removesuffix("Pil") + "Pil")
    processor = kind(**PROCESSORS[name])
    resized: list[tuple[int, int]] = []
    resize = Image.Image.resize

    def spy(image: Image.Image, size: tuple[int, int], *given: Any, **options: Any) -> Image.Image:
        resized.append(size)
        return resize(image, size, *given, **options)

    monkeypatch.setattr(Image.Image, "resize", spy)
    for size in ((40, 40), (64, 40), (40, 64), (300, 4), (4, 300), (7, 1)):
        resized.clear()
        with suppress(ValueError):  # DETR's makes images 0 pixels wide
            processor(images=drawn(*size), return_tensors="np")
        assert resized
        said = resized_size(processor, *size)
        most = max(width * height for width, height in resized)
        assert most <= said[0] * said[1]
        if size == (40, 40) and name != "TextNetImageProcessorPil":
            assert said[0] * said[1] <= 4 * most


def test_the_large_convnext_squeezes_every_image(tmp_path):
    processor = tf.ConvNextImageProcessorPil(size={"shortest_edge": 384})
    assert resized_size(processor, 1, 400) == (384, 384)


def test_costs_are_known_from_headers(cropped, monkeypatch):
    preprocessor = load(cropped, "cpu", "fp32").preprocessor
    inputs = [
        png(Image.new("RGB", (640, 480))),
        png(Image.new("RGB", (2, 40))),
        PixelArray(np.zeros((10, 64, 3), np.uint8)),
        PixelArray(np.zeros((3, 32, 64), np.float32)),
        EncodedImage(b"no image"),
        EncodedImage(png(Image.new("RGB", (640, 480))).data, max_pixels=1000),
    ]
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: pytest.fail("it was decoded"))
    # 2 x 40 becomes 32 x 640.
    assert preprocessor.costs(inputs) == [
        1 + 640 * 480 // 64,
        1 + 32 * 640 // 64,
        1 + 32 * 205 // 64,
        33,
        1,
        1,
    ]


@pytest.mark.parametrize("mode", ["L", "P", "LA", "RGBA", "1", "I;16"])
def test_a_network_of_one_channel_gets_grey(mode, tmp_path):
    processor = tf.ViTImageProcessorPil(size=SQUARE, image_mean=[0.5], image_std=[0.5])
    directory = checkpoint(tmp_path, vit(num_channels=1), processor)
    grey = drawn(40, 50).convert("L")
    if mode == "1":
        grey = grey.convert("1").convert("L")
    file = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
    model = load(directory, "cpu", "fp32")
    np.testing.assert_allclose(model([png(file)]).logits, reference(directory, [grey]), atol=1e-4)


@pytest.mark.parametrize(
    ("channels", "fields", "reason"),
    [
        (1, {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}, "cannot prepare an image of 1 channels"),
        (3, {"image_mean": [0.5], "image_std": [0.5]}, "cannot prepare an image of 3 channels"),
        (1, {"do_convert_rgb": True}, "makes images of 3 channels, the network takes 1"),
        (5, {}, "the network takes images of 5 channels; served are 1, 3 and 4"),
    ],
)
def test_a_processor_for_other_channels_is_refused(channels, fields, reason, tmp_path):
    fields = {"image_mean": 0.5, "image_std": 0.5, "size": SQUARE, **fields}
    directory = checkpoint(
        tmp_path, vit(num_channels=channels), {"image_processor_type": "ViTImageProcessor", **fields}
    )
    with pytest.raises(CheckpointError, match=reason):
        load(directory, "cpu", "fp32")


def test_where_images_are_not_resized_a_network_of_one_size_takes_that_only(tmp_path):
    model = load(checkpoint(tmp_path, vit(), tf.ViTImageProcessorPil(do_resize=False)), "cpu", "fp32")
    image = drawn(32, 32)
    np.testing.assert_allclose(model([png(image)]).logits, reference(tmp_path, [image]), atol=1e-4)
    with pytest.raises(
        UnusableInput, match=r"the image is 40 x 32; this model takes 32 x 32 only.*resize it"
    ):
        model([png(drawn(40, 32))])
    with pytest.raises(UnusableInput, match=r"this model takes \[3, 32, 32\]"):
        model([PixelArray(np.zeros((3, 32, 40), np.float32))])


def test_where_images_are_not_resized_a_network_of_any_size_takes_all(tmp_path):
    model = load(checkpoint(tmp_path, resnet(), tf.ViTImageProcessorPil(do_resize=False)), "cpu", "fp32")
    images = [drawn(32, 32), drawn(40, 20), drawn(9, 70)]
    np.testing.assert_allclose(
        model([png(each) for each in images]).logits, reference(tmp_path, images), atol=1e-4
    )
    with pytest.raises(UnusableInput, match="over 4194304 pixels"):
        model([png(Image.new("RGB", (2100, 2100)))])


def test_masks_of_padding_are_left_out_for_networks_that_take_none(tmp_path):
    processor = tf.DetrImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 64})
    model = load(checkpoint(tmp_path, resnet(), processor), "cpu", "fp32")
    images = [drawn(50, 40), drawn(40, 50)]
    network = tf.AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    with torch.inference_mode():
        made = [processor(images=each, return_tensors="pt")["pixel_values"] for each in images]
        right = np.concatenate([network(pixel_values=each).logits.numpy() for each in made])
    np.testing.assert_allclose(model([png(each) for each in images]).logits, right, atol=1e-4)
    # Some image becomes 0 pixels wide.
    with pytest.raises(UnusableInput, match="processor cannot take an image of 1 x 200"):
        model([png(drawn(1, 200))])


def test_a_processor_of_another_kind_of_network_is_refused(tmp_path):
    directory = checkpoint(tmp_path, resnet(), tf.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16))
    with pytest.raises(
        CheckpointError, match="makes pixel_attention_mask, spatial_shapes, which resnet does not take"
    ):
        load(directory, "cpu", "fp32")


def test_a_model_of_patches_takes_no_ready_made_pixels(tmp_path):
    config = tf.Siglip2Config(vision_config={**VIT, "num_patches": 16}, text_config=VIT, **LABELS)
    processor = tf.Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16)
    model = load(checkpoint(tmp_path, config, processor), "cpu", "fp32")
    images = [drawn(50, 40), drawn(90, 20), drawn(8, 8)]
    np.testing.assert_allclose(
        model([png(each) for each in images]).logits, reference(tmp_path, images), atol=1e-4
    )
    with pytest.raises(
        UnusableInput, match=r"takes pixel_values, pixel_attention_mask, spatial_shapes.* send image"
    ):
        model([PixelArray(np.zeros((3, 32, 32), np.float32))])


@pytest.mark.parametrize("name", ["ViTImageProcessorFast", "ViTImageProcessor", "ViTFeatureExtractor"])
def test_fast_and_old_names_of_processors_load_without_torchvision(name, tmp_path):
    key = "feature_extractor_type" if name.endswith("Extractor") else "image_processor_type"
    directory = checkpoint(tmp_path, vit(), {key: name, "size": SQUARE})
    image = drawn(50, 40)
    found = load(directory, "cpu", "fp32")([png(image)]).logits
    np.testing.assert_allclose(found, reference(directory, [image]), atol=1e-4)


def test_a_processor_that_needs_torchvision_is_refused_by_the_packages_name(tmp_path):
    directory = checkpoint(tmp_path, resnet(), {"image_processor_type": "PPLCNetImageProcessor"})
    with pytest.raises(CheckpointError, match="needs torchvision; install it"):
        load(directory, "cpu", "fp32")


def test_float_images_are_refused_as_the_processor_would_scale_them_again(cropped):
    model = load(cropped, "cpu", "fp32")
    with pytest.raises(TypeError, match=r"values from 0 to 255, not float32 \[40, 50, 3\]"):
        model([np.zeros((40, 50, 3), np.float32)])


def test_images_without_pixels_are_refused(cropped):
    with pytest.raises(UnusableInput, match="has no pixels"):
        load(cropped, "cpu", "fp32")([PixelArray(np.zeros((0, 5, 3), np.uint8))])


def test_shapes_of_features_are_told():
    shape = image_preprocessor.FeatureShape.of([(3, 8, 8), (3, 8, 16)])
    assert str(shape) == "[3, 8, 8 or more]"
    assert shape.includes((3, 8, 9))
    assert not shape.includes((3, 9, 9))


@pytest.mark.parametrize(
    ("config", "processor", "reason"),
    [
        (vit(), tf.ViTImageProcessorPil(size={"height": 40, "width": 40}), r"cannot answer .*40\*40.*32\*32"),
        (vit(), KEEPS_RATIO, r"cannot answer .*32\*64.*32\*32"),
        (resnet(), tf.ViTImageProcessorPil(size={"height": 40, "width": 40}), ""),
        (tf.Dinov2Config(**VIT, **LABELS), tf.ViTImageProcessorPil(size={"height": 40, "width": 40}), ""),
    ],
    ids=["another size", "other ratios", "a network of any size", "a network that interpolates"],
)
def test_a_processor_of_another_size_than_the_networks_is_found_before_it_is_ready(
    config, processor, reason, tmp_path
):
    directory = checkpoint(tmp_path, config, processor)
    if reason:
        with pytest.raises(CheckpointError, match=reason):
            load(directory, "cpu", "fp32")
        return
    model = load(directory, "cpu", "fp32")
    image = drawn(50, 40)
    np.testing.assert_allclose(model([png(image)]).logits, reference(directory, [image]), atol=1e-4)


def test_probes_of_a_model_of_one_size_have_that_size(tmp_path):
    model = load(checkpoint(tmp_path, vit(), tf.ViTImageProcessorPil(do_resize=False)), "cpu", "fp32")
    assert [each.pixels.shape for each in model.preprocessor.probe_inputs()] == [(32, 32, 3)]


def test_a_probe_is_wide(cropped):
    model = load(cropped, "cpu", "fp32")
    shapes = [each.pixels.shape for each in model.preprocessor.probe_inputs()]
    assert shapes == [(64, 64, 3), (64, 128, 3)]


def test_labels_that_do_not_fit_the_head_are_found_before_the_model_is_ready(cropped, tmp_path):
    directory = checkpoint(tmp_path, resnet(), CROPS)
    model = load(directory, "cpu", "fp32")
    model.info = replace(model.info, labels=("red", "green"))
    with pytest.raises(CheckpointError, match=r"id2label of config.json does not fit the network's head"):
        model.check_able()


def test_in_bf16_convolutions_that_torch_multiplies_wrongly_answer_right(tmp_path):
    config = tf.SegformerConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, num_attention_heads=[1, 1, 2, 2], **LABELS
    )
    directory = checkpoint(tmp_path, config, tf.ViTImageProcessorPil(size=SQUARE))
    images = [drawn(32, 32), drawn(50, 40)]
    found = load(directory, "cpu", "bf16")([png(each) for each in images]).logits
    right = reference(directory, images)
    np.testing.assert_allclose(found, right, atol=0.06 * np.abs(right).max())


def test_features_can_be_prepared_in_another_process(cropped):
    model = load(cropped, "cpu", "fp32")
    copy = pickle.loads(pickle.dumps(model.preprocessor))
    image = png(drawn(50, 40))
    np.testing.assert_array_equal(
        copy.items([image], True)[0].features["pixel_values"],
        model.prepare([image])[0].features["pixel_values"],
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"size": {"height": 200_000, "width": 200_000}},
        {"size": {"shortest_edge": 100_000}},
        {"size": SQUARE, "do_center_crop": True, "crop_size": {"height": 90_000, "width": 90_000}},
        {"size": {"height": 0, "width": 0}},
        {"size": {"height": -5, "width": 32}},
        {"size": {"height": "large", "width": 32}},
        {"size": {"shortest_edge": None}},
        {"size": SQUARE, "resample": 77},
        {"size": SQUARE, "image_mean": ["a", "b", "c"]},
        {"size": SQUARE, "image_std": [0.5, 0.5]},
        {"image_processor_type": "NoSuchImageProcessor", "size": SQUARE},
        {"image_processor_type": 7, "size": SQUARE},
        {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 10_000},
    ],
    ids=str,
)
def test_a_damaged_processor_is_refused_at_load(fields, tmp_path):
    directory = checkpoint(tmp_path, resnet(), {"image_processor_type": "ViTImageProcessor", **fields})
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        load(directory, "cpu", "fp32")


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("fields", [{"image_std": [0.0] * 3}, {"rescale_factor": 0.0}])
def test_a_processor_that_leaves_nothing_of_an_image_is_found_before_the_model_is_ready(fields, tmp_path):
    fields = {"image_processor_type": "ViTImageProcessor", "size": SQUARE, **fields}
    directory = checkpoint(tmp_path, resnet(), fields)
    with pytest.raises(CheckpointError, match=r"not finite|the same answer"):
        load(directory, "cpu", "fp32")


@pytest.mark.parametrize("size", [(32, 32), (50, 40)])
def test_our_network_normalises_pixels_as_its_preprocessing_does(size):
    model = load("zoo:cifar10-narrow", "cpu", "fp32")
    image = drawn(*size).convert("RGB")
    ready = PixelArray(load_preprocessing(model.checkpoint.directory)(np.asarray(image)))
    items = model.prepare([png(image), PixelArray(np.asarray(image)), ready])
    assert items[0].features["pixels"].dtype == np.uint8
    np.testing.assert_array_equal(items[0].features["pixels"], items[1].features["pixels"])
    (made,) = (model._inputs([item.features])["pixel_values"].numpy() for item in items[:1])
    np.testing.assert_array_equal(made[0], ready.pixels)
    np.testing.assert_allclose(model.run(items).logits, model.run(items[2:]).logits.repeat(3, 0), atol=1e-4)
