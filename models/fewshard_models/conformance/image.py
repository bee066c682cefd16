"""Asks every image classifier of transformers the same images as transformers itself, one at a time."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from fewshard_core.activation import activate
from fewshard_core.formats import FORMATS
from fewshard_core.values import EncodedImage, Item
from fewshard_models.classifier.load import load
from fewshard_models.classifier.network import NetworkClassifier
from fewshard_models.conformance.image_checkpoints import ARCHITECTURES, make_checkpoint
from fewshard_models.errors import CheckpointError, UnusableInput

TOLERANCE = 1e-4
SIZES = ((64, 64), (50, 40), (40, 50), (96, 32))
FEW_PIXELS = ((50, 1), (50, 2), (50, 3), (50, 4), (1, 50), (3, 50), (4, 50), (1, 1), (3, 3))
MODES = ("L", "P", "RGBA", "LA", "1", "CMYK")
THREE = {"id2label": {0: "red", 1: "green", 2: "blue"}, "label2id": {"red": 0, "green": 1, "blue": 2}}
ONE = {"id2label": {0: "score"}, "label2id": {"score": 0}}
VARIANTS: dict[str, dict[str, Any]] = {
    "single_label_classification": THREE,
    "multi_label_classification": THREE,
    "regression": ONE,
    "one label": ONE,
}
"""The labels by problem_type; "one label" states none."""


@dataclass(frozen=True, slots=True)
class ImageResult:
    """What was found about one architecture.

    architecture: the name of its class.
    model_type: its type in configurations.
    how: in what passes mixed images run; "" if it is refused.
    refusal: why it is refused; "" if it is served.
    faults: what is wrong although it is served.
    """

    architecture: str
    model_type: str
    how: str
    refusal: str
    faults: tuple[str, ...] = ()


def check_images(architectures: Sequence[str] = tuple(ARCHITECTURES)) -> Iterator[ImageResult]:
    """Yield one result for each architecture."""
    for architecture in architectures:
        with tempfile.TemporaryDirectory(prefix="fewshard-") as folder:
            yield check_image_architecture(architecture, Path(folder))


def check_image_architecture(architecture: str, folder: Path) -> ImageResult:
    """Make checkpoints of one class in a folder and compare their answers with transformers' own."""
    model_type = ARCHITECTURES[architecture]
    faults: list[str] = []
    how = ""
    for name, fields in VARIANTS.items():
        stated = {} if name == "one label" else {"problem_type": name}
        directory = make_checkpoint(architecture, folder / name, **fields, **stated)
        try:
            model = load(directory, "cpu", "fp32")
            model.self_check()
        except CheckpointError as error:
            return ImageResult(architecture, model_type, "", str(error).replace(str(directory), "it"))
        images = IMAGES if name == "single_label_classification" else IMAGES[:4]
        faults += [f"{name}: {fault}" for fault in _faults(model, directory, "fp32", images)]
        how = how or _how(model)
    half = folder / "single_label_classification"
    faults += [f"bf16: {fault}" for fault in _faults(load(half, "cpu", "bf16"), half, "bf16", IMAGES[:4])]
    return ImageResult(architecture, model_type, how, "", tuple(faults))


def _drawn(width: int, height: int, mode: str = "RGB") -> Image.Image:
    generator = np.random.default_rng(width * 100 + height)
    # Blocks of several pixels: white noise becomes grey when it is resized.
    blocks = generator.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    pixels = blocks.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    return Image.fromarray(np.ascontiguousarray(pixels)).convert(mode)


IMAGES = (
    *(_drawn(*size) for size in SIZES),
    *(_drawn(48, 40, mode) for mode in MODES),
    *(_drawn(*size) for size in FEW_PIXELS),
)


def _file(image: Image.Image) -> EncodedImage:
    data = BytesIO()
    image.save(data, "JPEG" if image.mode == "CMYK" else "PNG")
    return EncodedImage(data.getvalue())


def _faults(
    model: NetworkClassifier, directory: Path, dtype: str, images: Sequence[Image.Image]
) -> Iterator[str]:
    """Yield what differs from transformers' own answers."""
    files = [_file(image) for image in images]
    rights = _reference(directory, files)
    pairs = [(_prepared(model, file), right) for file, right in zip(files, rights, strict=True)]
    for image, (item, right) in zip(images, pairs, strict=True):
        if (item is None) != (right is None):
            yield f"{_told(image)}: {'refused' if item is None else 'answered'}, unlike by transformers"
    both = [(item, right) for item, right in pairs if item is not None and right is not None]
    items, expected = [item for item, _ in both], np.stack([right for _, right in both])
    # Random networks make more of rounding than the trained ones for which formats state a tolerance.
    tolerance = TOLERANCE if dtype == "fp32" else 3 * FORMATS[dtype].tolerance
    tolerance *= max(1.0, float(np.abs(expected).max()))
    if dtype == "fp32" and np.ptp(expected, axis=0).max() < 20 * tolerance:
        yield "all images have nearly the same logits, so that nothing is tested"
    alone = np.concatenate([model.run([item]).logits for item in items])
    for name, found in (("alone", alone), ("in one batch", model.run_all(items))):
        worst = float(np.abs(found - expected).max())
        if not worst <= tolerance:
            yield f"{name}: a logit is off by {worst:.3g}, more than {tolerance:.2g}"
    if dtype == "fp32":
        yield from _wrong_scores(model, files[0], expected[:1])


def _wrong_scores(model: NetworkClassifier, file: EncodedImage, logits: NDArray[np.float32]) -> Iterator[str]:
    config = model.checkpoint.model.config
    stated = config.problem_type or "single_label_classification"
    answer = model([file])
    if answer.scores.shape != (1, config.num_labels):
        yield f"scores of shape {answer.scores.shape} for {config.num_labels} labels"
    elif np.abs(answer.scores - activate(logits, stated)).max() > TOLERANCE:
        yield f"scores are not those of {stated}"


def _prepared(model: NetworkClassifier, file: EncodedImage) -> Item | None:
    try:
        return model.prepare([file])[0]
    except UnusableInput:
        return None


def _reference(directory: Path, files: Sequence[EncodedImage]) -> list[NDArray[np.float32] | None]:
    """Return transformers' own fp32 logits of each image alone; None where its processor raises."""
    processor = AutoImageProcessor.from_pretrained(directory)
    network = AutoModelForImageClassification.from_pretrained(directory, dtype=torch.float32).eval()
    rows: list[NDArray[np.float32] | None] = []
    for file in files:
        image = Image.open(BytesIO(file.data)).convert("RGB")
        try:
            inputs = processor(images=image, return_tensors="pt")
        except Exception:  # noqa: BLE001  processors raise many kinds of errors
            rows.append(None)
            continue
        with torch.inference_mode():
            rows.append(network(**inputs).logits[0].float().numpy())
    return rows


def _told(image: Image.Image) -> str:
    return f"{image.width} x {image.height} {image.mode}"


def _how(model: NetworkClassifier) -> str:
    items = model.prepare([_file(image) for image in IMAGES[:4]])
    shapes = {tuple(each.shape for each in item.features.values()) for item in items}
    return "one pass" if len(shapes) == 1 else "one pass a shape"
