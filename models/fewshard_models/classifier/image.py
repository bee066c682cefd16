"""Runs image classifiers: any that transformers loads, and our own CNN."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from fewshard_core.values import Item, ModelInfo, ModelOutput
from fewshard_models.checkpoint import Checkpoint, load_with_transformers
from fewshard_models.classifier.image_files import ImagePreprocessor, Preprocess
from fewshard_models.classifier.network import NetworkClassifier
from fewshard_models.classifier.registry import register
from fewshard_models.errors import CheckpointError
from fewshard_models.image import FewshardImageForImageClassification
from fewshard_models.image.preprocessing import load_preprocessing


@register("*ForImageClassification")
class ImageClassifier(NetworkClassifier):
    """Any image classifier of transformers, with its own image processor; channels last in memory."""

    task = "image"

    def __init__(self, checkpoint: Checkpoint, info: ModelInfo) -> None:
        super().__init__(checkpoint, info)
        # oneDNN and cuDNN run convolutions fastest with channels last.
        self.network = checkpoint.model.to(memory_format=torch.channels_last)
        self.preprocessor = ImagePreprocessor(self.preprocessing(checkpoint.directory))

    @classmethod
    def load_network(cls, directory: Path, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
        """See `NetworkClassifier.load_network`."""
        return load_with_transformers(AutoModelForImageClassification, directory, config, dtype)

    def preprocessing(self, directory: Path) -> Preprocess:
        """Return a function from uint8 [height, width, 3] to fp32 [3, H, W]. Raises CheckpointError."""
        return _processor(directory)

    def run(self, items: Sequence[Item]) -> ModelOutput:
        """One forward pass over the items' pixels."""
        pixels = torch.from_numpy(np.stack([item.features for item in items]))
        pixels = pixels.to(self.device, self.dtype, memory_format=torch.channels_last)
        with torch.inference_mode():
            logits = self.network(pixel_values=pixels).logits
        return ModelOutput(logits.float().cpu().numpy())


@register("FewshardImageForImageClassification")
class FusedImageClassifier(ImageClassifier):
    """Our CNN. Convolutions are fused with the layers after them."""

    def __init__(self, checkpoint: Checkpoint, info: ModelInfo) -> None:
        super().__init__(checkpoint, info)
        assert isinstance(self.network, FewshardImageForImageClassification)
        self.network.prepare_for_inference()

    def preprocessing(self, directory: Path) -> Preprocess:
        """Return our own preprocessing, which needs no transformers."""
        return load_preprocessing(directory)


def _processor(directory: Path) -> Preprocess:
    """Return the checkpoint's image processor as a function of one image."""
    try:
        processor = AutoImageProcessor.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
    # transformers raises many kinds of errors; each means that these files are at fault
    except Exception as error:
        raise CheckpointError(f"{directory} has no usable preprocessor_config.json: {error}") from error
    return partial(_processed, processor)


def _processed(processor: Any, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    pixels: NDArray[np.float32] = processor(images=image, return_tensors="np")["pixel_values"][0]
    return pixels.astype(np.float32)
