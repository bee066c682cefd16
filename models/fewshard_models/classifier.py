"""A loaded checkpoint as a function from texts or images to logits, run as the server runs it.

Called by `evaluate` and `judge`. Our own encoder runs packed, every other text model padded.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from fewshard_models.checkpoint import Checkpoint
from fewshard_models.errors import CheckpointError
from fewshard_models.image import FewshardImageForImageClassification
from fewshard_models.image.preprocessing import load_preprocessing
from fewshard_models.text import FewshardTextForSequenceClassification, pack
from fewshard_models.text.inference import MAX_TOKENS

_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")
# Texts, or images uint8 [H, W, 3] in a list or an array.
Inputs = Sequence[Any] | NDArray[Any]
Preprocess = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


class Classifier(ABC):
    """`prepare` turns inputs into items, `run` items into logits; `run` is what a server does for a batch."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.model: PreTrainedModel = checkpoint.model
        parameter = next(checkpoint.model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype

    @abstractmethod
    def prepare(self, inputs: Inputs) -> list[Any]:
        """Token ids, or fp32 pixels [3, H, W], of each input."""

    @abstractmethod
    def run(self, items: Sequence[Any]) -> Tensor:
        """fp32 logits [len(items), num_labels], in the order of the items."""

    def logits(self, inputs: Inputs, batch_size: int = 256) -> NDArray[np.float32]:
        """fp32 logits [N, num_labels] of any number of inputs, in their order."""
        items = self.prepare(inputs)
        # Texts of like length together: fewer attention calls when packed, less padding when not.
        order = sorted(range(len(items)), key=lambda row: len(items[row]))
        parts = []
        with torch.inference_mode():
            for start in range(0, len(order), batch_size):
                parts.append(self.run([items[row] for row in order[start : start + batch_size]]).cpu())
        logits = torch.cat(parts).numpy()
        in_order = np.empty_like(logits)
        in_order[order] = logits
        return in_order


class PackedText(Classifier):
    """Our own encoder; sorts a batch by length, as the server does."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self._tokenizer = _tokenizer(checkpoint.directory)

    def prepare(self, inputs: Inputs) -> list[list[int]]:
        return _token_ids(self._tokenizer, inputs)

    def run(self, items: Sequence[list[int]]) -> Tensor:
        order = sorted(range(len(items)), key=lambda row: len(items[row]))
        with torch.inference_mode():
            packed = pack([items[row] for row in order], None, self.device)
            found = self.model.forward_packed(packed).logits
        logits = torch.empty_like(found)
        logits[torch.tensor(order, device=found.device)] = found
        return logits


class PaddedText(Classifier):
    """Any text classifier of transformers. One whose config names no padding token runs text by text."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self._tokenizer = _tokenizer(checkpoint.directory)
        self._can_pad = getattr(checkpoint.model.config, "pad_token_id", None) is not None

    def prepare(self, inputs: Inputs) -> list[list[int]]:
        return _token_ids(self._tokenizer, inputs)

    def run(self, items: Sequence[list[int]]) -> Tensor:
        if not self._can_pad and len(items) > 1:
            return torch.cat([self.run([item]) for item in items])
        length = max(len(item) for item in items)
        ids = [item + [self._tokenizer.pad_token_id or 0] * (length - len(item)) for item in items]
        mask = [[1] * len(item) + [0] * (length - len(item)) for item in items]
        with torch.inference_mode():
            out = self.model(
                input_ids=torch.tensor(ids, device=self.device),
                attention_mask=torch.tensor(mask, device=self.device),
            )
        logits: Tensor = out.logits.float()
        return logits


class ImageClassifier(Classifier):
    """Our CNN or any image classifier of transformers, channels last in memory."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.model = self.model.to(memory_format=torch.channels_last)
        self._preprocess = _preprocess(checkpoint)

    def prepare(self, inputs: Inputs) -> list[NDArray[np.float32]]:
        return [self._preprocess(image) for image in inputs]

    def run(self, items: Sequence[NDArray[np.float32]]) -> Tensor:
        pixels = torch.from_numpy(np.stack(items))
        pixels = pixels.to(self.device, self.dtype, memory_format=torch.channels_last)
        with torch.inference_mode():
            logits: Tensor = self.model(pixel_values=pixels).logits.float()
        return logits


def classifier(checkpoint: Checkpoint) -> Classifier:
    """The right one for a checkpoint. Raises CheckpointError where its tokenizer or preprocessor is unfit."""
    if isinstance(checkpoint.model, FewshardTextForSequenceClassification):
        return PackedText(checkpoint)
    return PaddedText(checkpoint) if checkpoint.task == "text" else ImageClassifier(checkpoint)


def _token_ids(tokenizer: PreTrainedTokenizerBase, texts: Inputs) -> list[list[int]]:
    limit = min(MAX_TOKENS, tokenizer.model_max_length)
    return list(tokenizer(list(texts), truncation=True, max_length=limit)["input_ids"])


def _tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    # Without any of these files transformers makes up an empty tokenizer and says nothing.
    if not any(any(directory.glob(name)) for name in _TOKENIZER_FILES):
        raise CheckpointError(f"{directory} has no tokenizer: none of {', '.join(_TOKENIZER_FILES)} is there")
    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise CheckpointError(f"{directory} has no usable tokenizer: {error}") from error


def _preprocess(checkpoint: Checkpoint) -> Preprocess:
    if isinstance(checkpoint.model, FewshardImageForImageClassification):
        return load_preprocessing(checkpoint.directory)
    directory = checkpoint.directory
    try:
        processor = AutoImageProcessor.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
    except Exception as error:
        raise CheckpointError(f"{directory} has no usable preprocessor_config.json: {error}") from error
    return lambda image: processor(images=image, return_tensors="np")["pixel_values"][0].astype(np.float32)
