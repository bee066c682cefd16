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
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from fewshard_core.values import Diagnosis, ExpertCounts, Item, ModelInfo, ModelOutput, TokenRouting
from fewshard_kernels import MoeStats
from fewshard_models.checkpoint import Checkpoint, load_config, load_converted
from fewshard_models.classifier.network import TextClassifier
from fewshard_models.classifier.overlap import SharedLock
from fewshard_models.classifier.registry import register
from fewshard_models.classifier.tokenizer import TextPreprocessor
from fewshard_models.text import (
    FewshardTextConfig,
    FewshardTextForSequenceClassification,
    PackedTokens,
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
        self._routing = _RoutingTotals(self.network) if has_experts else None

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
                _fill_routing(wanted, packed, chosen)
            else:
                with self._passes.shared():
                    out = self.network.forward_packed(packed)
        if self._routing is not None:
            self._routing.add(out.moe_stats)
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

    def expert_counts(self) -> ExpertCounts | None:
        """Return counts since loading, without its checks; None for a dense model."""
        return None if self._routing is None else self._routing.copy()

    def check_able(self) -> None:
        """See `NetworkClassifier.check_able`; it is not counted as routing."""
        super().check_able()
        self._forget_routing()

    def self_check(self) -> None:
        """See `NetworkClassifier.self_check`; it is not counted as routing."""
        super().self_check()
        self._forget_routing()

    def _forget_routing(self) -> None:
        if self._routing is not None:
            self._routing.clear()


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


def _fill_routing(
    wanted: Sequence[TokenRouting | None], packed: PackedTokens, chosen: Sequence[Tensor]
) -> None:
    """Give each item that requested it its part of `chosen`, [num_tokens, top_k] for each layer."""
    if not chosen:
        return
    by_item = zip(*(layer.split(packed.lengths) for layer in chosen), strict=True)
    for routing, layers in zip(wanted, by_item, strict=True):
        if routing is not None:
            routing.experts = [layer.tolist() for layer in layers]


class _RoutingTotals:
    """Sums of `MoeStats` over batches. They stay on the device until they are read."""

    def __init__(self, network: FewshardTextForSequenceClassification) -> None:
        config, device = network.config, next(network.parameters()).device
        shape = (len(config.expert_layers), config.num_experts)
        self._top_k = config.num_experts_per_tok
        self._lock = threading.Lock()
        self._tokens = torch.zeros(shape, dtype=torch.int64, device=device)
        self._probability = torch.zeros(shape, dtype=torch.float64, device=device)
        self._entropy = torch.zeros(shape[0], dtype=torch.float64, device=device)

    def add(self, layers: Sequence[MoeStats]) -> None:
        with self._lock:
            self._tokens += torch.stack([stats.expert_rows for stats in layers])
            self._probability += torch.stack([stats.expert_probability for stats in layers])
            self._entropy += torch.stack([stats.entropy for stats in layers])

    def clear(self) -> None:
        with self._lock:
            for total in (self._tokens, self._probability, self._entropy):
                total.zero_()

    def copy(self) -> ExpertCounts:
        with self._lock:
            tokens = self._tokens.cpu().numpy().copy()
            return ExpertCounts(
                tokens=tokens,
                probability=self._probability.cpu().numpy().copy(),
                entropy=self._entropy.cpu().numpy().copy(),
                rows=tokens.sum(axis=1) // self._top_k,
                top_k=self._top_k,
            )
