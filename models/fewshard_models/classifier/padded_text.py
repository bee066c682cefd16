"""Runs any text classifier of transformers: items sorted by length, padded under a token budget."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fewshard_core.values import Item, ModelInfo, ModelOutput, TokenIds
from fewshard_models.checkpoint import Checkpoint
from fewshard_models.classifier.network import TextClassifier
from fewshard_models.classifier.registry import register
from fewshard_models.classifier.tokenizer import TextPreprocessor

MAX_PADDED_TOKENS = 16384
"""The most tokens, padding included, of one forward pass."""


@register("*ForSequenceClassification")
class PaddedText(TextClassifier):
    """Splits a batch into passes. Without a padding token in the config, only equal lengths share a pass."""

    def __init__(self, checkpoint: Checkpoint, info: ModelInfo) -> None:
        super().__init__(checkpoint, info)
        self.preprocessor = TextPreprocessor(checkpoint.directory, info.max_tokens)
        self._pad_token_id = self.preprocessor.pad_token_id
        # A decoder whose config has no padding token cannot find the end of a padded text.
        self._can_pad = getattr(checkpoint.model.config, "pad_token_id", None) is not None

    def run(self, items: Sequence[Item]) -> ModelOutput:
        """Run as few passes as the padding budget allows."""
        order = sorted(range(len(items)), key=lambda index: items[index].num_tokens)
        passes = [
            self._pass([item.features for item in part]) for part in self._parts([items[i] for i in order])
        ]
        num_padded = sum(num for _, num in passes)
        logits = np.empty((len(items), len(self.info.labels)), dtype=np.float32)
        logits[order] = np.concatenate([part for part, _ in passes])
        return ModelOutput(logits, num_padded - sum(item.num_tokens for item in items))

    def _parts(self, items: list[Item]) -> Iterator[list[Item]]:
        """Split length-sorted items where padding would exceed the budget, or is not possible."""
        part: list[Item] = []
        for item in items:
            fits = (len(part) + 1) * item.num_tokens <= MAX_PADDED_TOKENS
            if part and not (fits and (self._can_pad or part[0].num_tokens == item.num_tokens)):
                yield part
                part = []
            part.append(item)
        yield part

    def _pass(self, features: list[TokenIds]) -> tuple[np.ndarray, int]:
        """Return fp32 logits [len(features), num_labels] and the number of tokens, padding included."""
        length = max(len(item.ids) for item in features)
        inputs = {
            "input_ids": self._stack([item.ids for item in features], length, self._pad_token_id),
            "attention_mask": self._stack([[1] * len(item.ids) for item in features], length, 0),
        }
        if features[0].types is not None:
            inputs["token_type_ids"] = self._stack([item.types or [] for item in features], length, 0)
        with torch.inference_mode():
            logits = self.network(**inputs).logits
        return logits.float().cpu().numpy(), len(features) * length

    def _stack(self, rows: list[list[int]], length: int, fill: int) -> Tensor:
        return torch.tensor([row + [fill] * (length - len(row)) for row in rows], device=self.device)
