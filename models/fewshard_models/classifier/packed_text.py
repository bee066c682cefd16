"""Runs our own text encoder: packed batches without padding, and exact routing counts for MoE.

`ActivationProbe` diagnoses a sample of the items: near-zero units, and experts by predicted class.
"""

import logging
import random
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from fewshard_core.values import Diagnosis, Item, ModelInfo, ModelOutput
from fewshard_models.checkpoint import Checkpoint, load_config, load_converted
from fewshard_models.classifier.network import TextClassifier
from fewshard_models.classifier.overlap import SharedLock
from fewshard_models.classifier.registry import register
from fewshard_models.classifier.routing_totals import RoutingTotals, fill_routing
from fewshard_models.classifier.tokenizer import TextPreprocessor
from fewshard_models.text import (
    FewshardTextConfig,
    FewshardTextForSequenceClassification,
    pack,
    watched_experts,
)
from fewshard_models.text.convert import ARCHITECTURES, can_convert, position_offset
from fewshard_models.text.observers import ActivationStats, signs_of

logger = logging.getLogger(__name__)

WINDOW_ITEMS = 200


class ActivationProbe:
    """Diagnoses a `share` of the items, each in its own pass. `look` runs on the runner's thread."""

    def __init__(self, network: FewshardTextForSequenceClassification, info: ModelInfo, share: float) -> None:
        self._network = network
        self._share = share
        self._random = random.Random()
        self._lock = threading.Lock()
        self._sparsity: deque[np.ndarray] = deque(maxlen=WINDOW_ITEMS)
        self._experts: np.ndarray | None = None
        self._num_labels = len(info.labels)
        self._num_items = 0

    def is_due(self, num_texts: int) -> bool:
        """Return whether to look at one of so many texts, with a probability that makes it `share` of all."""
        return num_texts > 0 and self._random.random() < self._share * num_texts

    def look(self, token_ids: Sequence[Sequence[int]]) -> None:
        """Diagnose one of these texts. Nothing else may run meanwhile."""
        try:
            self._keep(signs_of(self._network, [self._random.choice(token_ids)]))
        except Exception:  # the batch is answered already; a failed diagnosis must not affect it
            logger.exception("a text could not be looked at; no more is tried")
            self._share = 0.0

    def _keep(self, signs: ActivationStats) -> None:
        label = int(signs.logits[0].argmax())
        with self._lock:
            self._num_items += 1
            self._sparsity.append(signs.sparsity[0])
            if self._experts is None:
                self._experts = np.zeros((self._num_labels, *signs.experts.shape[1:]), np.int64)
            self._experts[label] += signs.experts[0]

    def read(self) -> Diagnosis | None:
        """Return the diagnosis; None before the first item."""
        with self._lock:
            if self._experts is None:
                return None
            means = np.mean(list(self._sparsity), axis=0)
            return Diagnosis(self._num_items, tuple(map(float, means)), self._experts.copy())


@register("FewshardTextForSequenceClassification", *ARCHITECTURES)
class PackedText(TextClassifier):
    """Our text encoder. It also runs BERT and its relatives, whose weights are converted.

    `run` sorts the items by length, so that equally long ones share an attention call.
    """

    can_overlap = True
    network: FewshardTextForSequenceClassification

    def __init__(self, checkpoint: Checkpoint, info: ModelInfo) -> None:
        super().__init__(checkpoint, info)
        self._passes = SharedLock()
        """Held alone where hooks watch the network."""
        assert isinstance(self.network, FewshardTextForSequenceClassification)
        self.network.prepare_for_inference()
        has_experts = bool(self.network.config.num_experts)
        self.preprocessor = packed_preprocessor(
            checkpoint.directory, self.network.config, reports_routing=has_experts
        )
        self.info = replace(info, max_tokens=self.preprocessor.max_tokens)
        self._probe: ActivationProbe | None = None
        self.routing = self._totals() if has_experts else None

    @classmethod
    def accepts(cls, config: PreTrainedConfig) -> bool:
        """Return whether it is our own configuration, or one that our encoder can compute."""
        return isinstance(config, FewshardTextConfig) or can_convert(config)

    @classmethod
    def load_network(cls, directory: Path, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
        """See `NetworkClassifier.load_network`."""
        if can_convert(config):
            return load_converted(directory, config, dtype)
        return super().load_network(directory, config, dtype)

    def run(self, items: Sequence[Item]) -> ModelOutput:
        """Run one forward pass. Fills in `routing` of the items that request it."""
        order = sorted(range(len(items)), key=lambda index: items[index].num_tokens)
        features = [items[index].features for index in order]
        types = None if features[0].types is None else [item.types for item in features]
        packed = pack([item.ids for item in features], types, self.device)
        wanted = [items[index].routing for index in order]
        with torch.inference_mode():
            if any(wanted):
                with self._passes.exclusive(), watched_experts(self.network) as chosen:
                    out = self.network.forward_packed(packed)
                fill_routing(wanted, packed.lengths, chosen)
            else:
                with self._passes.shared():
                    out = self.network.forward_packed(packed)
        if self.routing is not None:
            self.routing.add(out.moe_stats)
        logits = np.empty(out.logits.shape, dtype=np.float32)
        logits[order] = out.logits.cpu().numpy()
        if self._probe is not None and self._probe.is_due(len(features)):
            with self._passes.exclusive():
                self._probe.look([item.ids for item in features])
        return ModelOutput(logits)

    def diagnose(self, share: float) -> None:
        """From now on, diagnose this share of the items, each in its own pass."""
        self._probe = ActivationProbe(self.network, self.info, share) if share else None

    def diagnosis(self) -> Diagnosis | None:
        """Return the diagnosis; None if no item was diagnosed."""
        return None if self._probe is None else self._probe.read()

    def _totals(self) -> RoutingTotals:
        config = self.network.config
        return RoutingTotals(
            len(config.expert_layers), config.num_experts, config.num_experts_per_tok, self.device
        )


def packed_preprocessor(
    directory: Path, config: FewshardTextConfig, reports_routing: bool
) -> TextPreprocessor:
    """Return the preprocessor of our encoder with this configuration, for the tokenizer of a directory."""
    return TextPreprocessor(
        directory,
        config.max_position_embeddings,
        reports_routing,
        num_rows=config.vocab_size,
        num_types=config.type_vocab_size,
        refused_ids=_unnumbered_ids(load_config(directory)),
    )


def _unnumbered_ids(config: PreTrainedConfig) -> set[int]:
    """Return the padding id of RoBERTa and its relatives: within a text it would take no position."""
    is_unnumbered = getattr(config, "pads_unnumbered", False) or position_offset(config)
    return {config.pad_token_id} if is_unnumbered else set()
