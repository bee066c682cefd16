"""Runs image classifiers: any that transformers loads, and our own CNN."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel

from fewshard_core.values import Item, ModelInfo, ModelOutput
from fewshard_models.checkpoint import Checkpoint, load_with_transformers
from fewshard_models.classifier.convolution import guard_convolutions
from fewshard_models.classifier.image_preprocessor import ImagePreprocessor, Preprocess
from fewshard_models.classifier.image_processor import Features, load_processor, num_channels
from fewshard_models.classifier.network import NetworkClassifier
from fewshard_models.classifier.registry import register
from fewshard_models.errors import CheckpointError
from fewshard_models.image import FewshardImageForImageClassification
from fewshard_models.image_preprocessing import PIXELS, OwnPreprocess, load_preprocessing

MAX_PASS_VALUES = 512 * 3 * 224 * 224
"""The most numbers in the input of one forward pass; 308 MB in fp32."""

_UNSERVED = {
    "shieldgemma2": "it asks whether an image breaks a policy that a text states, and images come without one"
}


@register("*ForImageClassification*")
class ImageClassifier(NetworkClassifier):
    """Any image classifier of transformers, with its own image processor; channels last in memory."""

    task = "image"
    can_compile = True
    preprocessor: ImagePreprocessor

    def __init__(self, checkpoint: Checkpoint, info: ModelInfo) -> None:
        super().__init__(checkpoint, info)
        # oneDNN and cuDNN run convolutions fastest with channels last.
        self.network = self.forward = checkpoint.model.to(memory_format=torch.channels_last)
        guard_convolutions(self.network)
        directory, config = checkpoint.directory, checkpoint.model.config
        try:
            self.preprocessor = ImagePreprocessor(self.preprocessing(directory), _edge(config))
        except CheckpointError:
            raise
        # a processor raises many kinds of errors for settings that contradict each other
        except Exception as error:
            raise CheckpointError(
                f"{directory}: preprocessor_config.json cannot prepare an ordinary image: {error}"
            ) from error
        self._check_channels(num_channels(config))
        self._learn_sizes()

    @classmethod
    def load_network(cls, directory: Path, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
        """See `NetworkClassifier.load_network`."""
        if reason := _UNSERVED.get(config.model_type):
            raise CheckpointError(f"{directory} holds a {config.model_type}, which is not served: {reason}")
        return load_with_transformers(AutoModelForImageClassification, directory, config, dtype)

    def preprocessing(self, directory: Path) -> Preprocess:
        """Return what converts an image to the arguments of the network. Raises CheckpointError."""
        return load_processor(directory, self.network.config, self.network.forward)

    def run(self, items: Sequence[Item]) -> ModelOutput:
        """Run one forward pass for each shape of features, more where one would be too large."""
        passes = list(_passes(items))
        parts = [self._pass([items[row].features for row in rows]) for rows in passes]
        logits = np.empty((len(items), *parts[0].shape[1:]), dtype=np.float32)
        for rows, part in zip(passes, parts, strict=True):
            logits[rows] = part
        return ModelOutput(logits)

    def _pass(self, features: list[Features]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return self.forward(**self._inputs(features)).logits.float().cpu().numpy()  # type: ignore[no-any-return]

    def _inputs(self, features: list[Features]) -> dict[str, Tensor]:
        return {name: self._tensor(np.stack([each[name] for each in features])) for name in features[0]}

    def _tensor(self, array: NDArray[np.generic]) -> Tensor:
        tensor = torch.from_numpy(array)
        if not tensor.is_floating_point():
            return tensor.to(self.device)
        is_image = tensor.ndim == 4
        layout = torch.channels_last if is_image else torch.preserve_format
        return tensor.to(self.device, self.dtype, memory_format=layout)

    def _check_channels(self, expected: int) -> None:
        shape = self.preprocessor.shape
        if shape is not None and len(shape.smallest) == 3 and shape.smallest[0] != expected:
            raise CheckpointError(
                f"{self.checkpoint.directory}: preprocessor_config.json makes images of {shape.smallest[0]} "
                f"channels, the network takes {expected}; is it another model's, or is do_convert_rgb set?"
            )

    def _learn_sizes(self) -> None:
        """Find out whether images that are not resized must have the network's own size."""
        if self.preprocessor.resizes:
            return
        items = self.preprocessor.items(self.preprocessor.probe_inputs(), truncate=True)
        try:
            self.run(items[1:])
        except Exception:  # noqa: BLE001  networks raise many kinds of errors for sizes they do not take
            self.preprocessor.require_own_size()


def _passes(items: Sequence[Item]) -> Iterator[list[int]]:
    """Yield rows of items that can share a forward pass."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for row, item in enumerate(items):
        groups.setdefault(tuple((name, each.shape) for name, each in item.features.items()), []).append(row)
    for rows in groups.values():
        num_values = sum(each.size for each in items[rows[0]].features.values())
        step = max(1, MAX_PASS_VALUES // num_values)
        yield from (rows[start : start + step] for start in range(0, len(rows), step))


def _edge(config: PreTrainedConfig) -> int:
    """Return the edge of the square images that a network was made for; 64 if its configuration is silent."""
    stated = getattr(getattr(config, "vision_config", config), "image_size", None)
    return stated if isinstance(stated, int) and 0 < stated <= 2048 else 64


@register("FewshardImageForImageClassification")
class FusedImageClassifier(ImageClassifier):
    """Our CNN. Convolutions are fused with the layers after them."""

    can_compile = False
    can_overlap = True

    def __init__(self, checkpoint: Checkpoint, info: ModelInfo) -> None:
        super().__init__(checkpoint, info)
        assert isinstance(self.network, FewshardImageForImageClassification)
        self.network.prepare_for_inference()

    def preprocessing(self, directory: Path) -> Preprocess:
        """Return our own preprocessing, which needs no transformers."""
        self._own = OwnPreprocess(load_preprocessing(directory))
        return self._own

    def _inputs(self, features: list[Features]) -> dict[str, Tensor]:
        """Normalise pixels for the whole batch at once, with the arithmetic of `ImagePreprocessing`."""
        if PIXELS not in features[0]:
            return super()._inputs(features)
        pixels = torch.from_numpy(np.stack([each[PIXELS] for each in features])).to(self.device)
        own = self._own.preprocessing
        mean, std = torch.tensor(own.mean, device=self.device), torch.tensor(own.std, device=self.device)
        # Pixels lie as channels last.
        normalised = pixels.float().div_(255).sub_(mean).div_(std).permute(0, 3, 1, 2)
        return {"pixel_values": normalised.to(self.dtype)}
