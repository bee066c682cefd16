"""Runs any token classifier of transformers, such as named-entity recognition: a label for each token.

Windows of all texts share passes as the texts of `PaddedText` do.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForTokenClassification, PreTrainedConfig, PreTrainedModel

from fewshard_core.values import Input, Item, ModelOutput, TokenIds
from fewshard_models.checkpoint import load_with_transformers
from fewshard_models.classifier.base import Predictions, Value
from fewshard_models.classifier.entities import Entity, entities_of
from fewshard_models.classifier.padded_text import PaddedText
from fewshard_models.classifier.padding import Padding
from fewshard_models.classifier.registry import register
from fewshard_models.classifier.token_windows import TokenPreprocessor

Rows = NDArray[np.float32]


@register("*ForTokenClassification")
class PaddedTokens(PaddedText):
    """An item is a text; its features are the token ids of its windows."""

    task = "tokens"
    can_compile = False
    preprocessor_class = TokenPreprocessor

    @classmethod
    def load_network(cls, directory: Path, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
        """See `NetworkClassifier.load_network`."""
        return load_with_transformers(AutoModelForTokenClassification, directory, config, dtype)

    def run(self, items: Sequence[Item]) -> ModelOutput:
        """Run as few passes as the padding budget allows."""
        windows = [Item(ids, len(ids.ids)) for item in items for ids in item.features]
        found: dict[int, Rows] = {}
        num_padded = 0
        for part in self._parts(windows):
            features = [windows[row].features for row in part]
            found.update(zip(part, self._answers(features, self.sharing.padding), strict=True))
            num_padded += len(part) * max(len(each.ids) for each in features)
        in_order = iter([found[row] for row in range(len(windows))])
        by_item = [np.concatenate([next(in_order) for _ in item.features]) for item in items]
        num_padding = num_padded - sum(each.num_tokens for each in windows)
        return ModelOutput(np.stack([_highest(each) for each in by_item]), num_padding, token_logits=by_item)

    def entities(
        self, inputs: Sequence[Value], aggregation: str = "simple", ignore_labels: Sequence[str] = ("O",)
    ) -> list[list[Entity]]:
        """Return what each text holds, in the text's order. `entities_of` says what the options mean.

        Raises as `Classifier.__call__` does.
        """
        items = self.prepare([self.preprocessor.to_input(each) for each in inputs]) if inputs else []
        self.run_all(items)
        found = [item.tokens for item in items if item.tokens is not None]
        return [entities_of(each, self.info.labels, aggregation, ignore_labels) for each in found]

    def __call__(self, inputs: object, truncate: bool = True) -> Predictions:
        """Raise TypeError: a text has no label of its own."""
        raise TypeError(f"{self.info.name} labels tokens; ask entities() in place of a call")

    def _probe_items(self) -> list[Item]:
        probes: list[Input] = self.preprocessor.probe_inputs()
        firsts: list[TokenIds] = [item.features[0] for item in self.preprocessor.items(probes, True)]
        return [Item(ids, len(ids.ids)) for ids in firsts]

    def _answers(self, features: Sequence[TokenIds], padding: Padding | None) -> list[Rows]:
        """Return fp32 logits [num_tokens, num_labels] of each text, without those of padding."""
        rows = self._pass(features, padding)
        is_left = padding is not None and padding.side == "left"
        lengths = [len(each.ids) for each in features]
        return [row[-length:] if is_left else row[:length] for row, length in zip(rows, lengths, strict=True)]


def _highest(logits: Rows) -> Rows:
    """Return each label's highest logit; NaN where any is not finite, so that it is no answer."""
    highest: Rows = logits.max(axis=0)
    return np.where(np.isfinite(logits).all(axis=0), highest, np.float32(np.nan)).astype(np.float32)
