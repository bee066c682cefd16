"""Asks every image classifier of transformers the same images as transformers itself, one at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES

from fewshard_core.activation import activate
from fewshard_core.formats import FORMATS
from fewshard_core.values import EncodedImage, Item, ProblemType
from fewshard_models.classifier.load import load
from fewshard_models.classifier.network import NetworkClassifier
from fewshard_models.conformance.image_checkpoints import make_checkpoint
from fewshard_models.conformance.matrix import REFUSED, Conformance
from fewshard_models.errors import CheckpointError, UnusableInput

ARCHITECTURES: dict[str, str] = {
    model_type: names if isinstance(names, str) else ", ".join(names)
    for model_type, names in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES.items()
}
"""The classes of each model type that transformers maps to image classification."""
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


def compare(model_type: str, directory: Path) -> Conformance:
    """Make checkpoints of all classes of this type in an empty directory, and compare all answers."""
    found = [
        _compare_class(model_type, name, directory / name) for name in ARCHITECTURES[model_type].split(", ")
    ]
    faults = tuple(fault for each in found for fault in each.faults)
    worst = max(each.worst for each in found)
    return replace(found[0], architecture=ARCHITECTURES[model_type], faults=faults, worst=worst)


def _compare_class(model_type: str, architecture: str, folder: Path) -> Conformance:
    faults: list[str] = []
    mode, worst = "", 0.0
    for name, fields in VARIANTS.items():
        stated = {} if name == "one label" else {"problem_type": name}
        directory = make_checkpoint(model_type, architecture, folder / name, **fields, **stated)
        try:
            model = load(directory, "cpu", "fp32")
        except CheckpointError as error:
            told = " ".join(str(error).replace(str(directory), "it").split())
            return Conformance(model_type, architecture, REFUSED, told)
        images = IMAGES if name == "single_label_classification" else IMAGES[:4]
        differences, off = _differences(model, directory, images)
        faults += [f"{architecture}, {name}: {each}" for each in differences]
        mode, worst = mode or _mode(model), max(worst, off)
    half = folder / "single_label_classification"
    faults += [
        f"{architecture}, bf16: {each}"
        for each in _differences(load(half, "cpu", "bf16"), half, IMAGES[:4])[0]
    ]
    return Conformance(model_type, architecture, mode, "", tuple(faults), worst)


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


def _differences(
    model: NetworkClassifier, directory: Path, images: Sequence[Image.Image]
) -> tuple[list[str], float]:
    """Return what differs from transformers' own answers, and the largest difference of logits."""
    files = [_file(image) for image in images]
    pairs = [
        (_prepared(model, file), right)
        for file, right in zip(files, _reference(directory, files), strict=True)
    ]
    found = [
        f"{_told(image)}: {'refused' if item is None else 'answered'}, unlike by transformers"
        for image, (item, right) in zip(images, pairs, strict=True)
        if (item is None) != (right is None)
    ]
    both = [(item, right) for item, right in pairs if item is not None and right is not None]
    items, expected = [item for item, _ in both], np.stack([right for _, right in both])
    scale = max(1.0, float(np.abs(expected).max()))
    is_exact = model.dtype == torch.float32
    # Random networks make more of rounding than the trained ones for which formats state a tolerance.
    tolerance = TOLERANCE if is_exact else 3 * FORMATS[model.info.dtype].tolerance
    if is_exact and np.ptp(expected, axis=0).max() < 20 * tolerance * scale:
        found.append("all images have nearly the same logits, so that nothing is tested")
    alone = np.concatenate([model.run([item]).logits for item in items])
    worst = 0.0
    for name, logits in (("alone", alone), ("in one batch", model.run_all(items))):
        off = float(np.abs(logits - expected).max()) / scale
        worst = max(worst, off)
        if not off <= tolerance:
            found.append(f"{name}: a logit is off by {off:.3g}, more than {tolerance:.2g}")
    if is_exact:
        found += _wrong_scores(model, files[0], expected[:1])
    return found, worst


def _wrong_scores(model: NetworkClassifier, file: EncodedImage, logits: NDArray[np.float32]) -> Iterator[str]:
    config = model.checkpoint.model.config
    stated: ProblemType = config.problem_type or "single_label_classification"
    scores = model([file]).scores
    if scores.shape != (1, config.num_labels):
        yield f"scores of shape {scores.shape} for {config.num_labels} labels"
    elif not np.allclose(scores, activate(logits, stated), atol=TOLERANCE):
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


def _mode(model: NetworkClassifier) -> str:
    items = model.prepare([_file(image) for image in IMAGES[:4]])
    shapes = {tuple(each.shape for each in item.features.values()) for item in items}
    return "together" if len(shapes) == 1 else "shape by shape"
