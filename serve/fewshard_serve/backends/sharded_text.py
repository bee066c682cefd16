"""Serves an MoE text classifier from several shards, as a `Classifier` like any other."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedConfig

from fewshard_core.cpu import available_cores
from fewshard_core.formats import FORMATS
from fewshard_core.values import Execution, ExpertCounts, Input, Item, ModelInfo, ModelOutput, TokenIds
from fewshard_models.card import load_card
from fewshard_models.checkpoint import resolve
from fewshard_models.classifier.base import Classifier
from fewshard_models.classifier.golden import golden_problem
from fewshard_models.classifier.limits import num_rows, num_types, text_limit
from fewshard_models.classifier.network import TextClassifier, describe
from fewshard_models.classifier.packed_text import PackedText, packed_preprocessor
from fewshard_models.classifier.padded_text import PaddedText
from fewshard_models.classifier.probe import probe_problem
from fewshard_models.classifier.tokenizer import TextPreprocessor
from fewshard_models.devices import choose_device, choose_dtype
from fewshard_models.errors import ModelsError
from fewshard_models.sharding import Placement
from fewshard_models.sharding.transformers_body import ShardableConfig, shardable_config, without_weights
from fewshard_models.sharding.weights import load_shardable_config
from fewshard_models.text import FewshardTextConfig
from fewshard_serve.core import GroupState
from fewshard_serve.errors import NotReady
from fewshard_serve.group.expert_placement import describe_change, first_placement, wanted_placement
from fewshard_serve.group.launcher import Launcher
from fewshard_serve.group.leader import Group, Run
from fewshard_serve.group.partition import StepOutput
from fewshard_serve.group.settings import ExpertsSettings, GroupSettings

APPLY_TIMEOUT_S = 60.0


class ShardedTextModel(Classifier):
    """A model over a group. `load_sharded_model` creates it and opens the group.

    last_overhead_s: duration of the last batch beyond the slowest shard's pass.
    """

    def __init__(self, info: ModelInfo, tokenizing: TextPreprocessor, group: Group, top_k: int) -> None:
        self.info = info
        self.preprocessor = tokenizing
        self._group = group
        self._totals = _Totals(top_k)
        self.last_overhead_s = 0.0

    def run(self, items: Sequence[Item]) -> ModelOutput:
        out = self._group.run([item.features for item in items])
        self._totals.add(out)
        self.last_overhead_s = out.overhead_s
        return ModelOutput(out.logits, is_degraded=out.is_degraded, exchange_s=out.overhead_s)

    def expert_counts(self) -> ExpertCounts | None:
        return self._totals.copy(self._group)

    def problem(self) -> str:
        return self._group.status.problem

    def group(self) -> GroupState:
        status = self._group.status
        placement = status.placement
        by_shard = [placement.experts_on(shard) for shard in range(status.num_shards)]
        return GroupState(
            status.num_shards,
            status.size,
            status.generation,
            status.num_reforms,
            status.num_moves,
            status.is_degraded,
            tuple(zip(*by_shard, strict=True)),
        )

    def place(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Return the cost of a placement. If `apply` is true in the body, also apply it."""
        current = self._group.status.placement
        placement = wanted_placement(wanted, current, self._group.max_slots, self.info.name)
        change = describe_change(current, placement, self._group.num_bytes_an_expert)
        is_applied = bool(wanted.get("apply")) and self.apply(placement)
        return {**change, "applied": is_applied}

    def apply(self, placement: Placement) -> bool:
        """Apply a placement. Return False if it is not in force within a minute."""
        return self._group.place(placement, APPLY_TIMEOUT_S)

    def close(self) -> None:
        self._group.close()


class _Totals:
    """Sums over batches. Other threads read them."""

    def __init__(self, top_k: int) -> None:
        self._top_k = top_k
        self._lock = threading.Lock()
        self._sum: ExpertCounts | None = None

    def add(self, out: StepOutput) -> None:
        added = ExpertCounts(
            tokens=out.tokens,
            probability=out.probability.astype(np.float64),
            entropy=out.entropy.astype(np.float64),
            rows=out.tokens.sum(axis=1) // self._top_k,
            top_k=self._top_k,
            shard_tokens=out.computed,
        )
        with self._lock:
            self._sum = added if self._sum is None else self._sum + added

    def copy(self, group: Group) -> ExpertCounts:
        with self._lock:
            return self._sum or self._nothing(*group.shape)

    def _nothing(self, num_layers: int, num_shards: int, num_experts: int) -> ExpertCounts:
        tokens, rows = np.zeros((num_layers, num_experts), np.int64), np.zeros(num_layers, np.int64)
        computed = np.zeros((num_layers, num_shards), np.int64)
        return ExpertCounts(
            tokens, tokens.astype(np.float64), rows.astype(np.float64), rows, self._top_k, computed
        )


def load_sharded_model(
    name: str,
    path: str,
    device: str,
    dtype: str,
    experts: ExpertsSettings,
    launcher: Launcher,
    address: str = "127.0.0.1",
) -> ShardedTextModel:
    """Open a group for the checkpoint at `path`. Returns once the group is complete.

    The leader listens on `address`. Raises NotReady with the fault of the checkpoint, its placement or a
    worker, and the remedy.
    """
    try:
        return _load(name, path, device, dtype, experts, launcher, address)
    except (ModelsError, ValueError) as error:
        raise NotReady(f"model {name!r} cannot be loaded: {error}") from error


def _load(
    name: str,
    path: str,
    device: str,
    dtype: str,
    experts: ExpertsSettings,
    launcher: Launcher,
    address: str,
) -> ShardedTextModel:
    directory = resolve(path).absolute()
    plain, card = load_shardable_config(directory), load_card(directory)
    config, kind, architecture, tokenizing = _described(directory, plain)
    target = first_placement(experts, config, name)
    chosen = choose_device(device).name
    choice = choose_dtype(dtype, chosen)
    number_format = FORMATS[choice.name]
    if not number_format.is_cast:
        raise ValueError(f"dtype {number_format.name} cannot be used over shards; choose one made by casting")
    settings = _settings(path, number_format.name, chosen, experts, config.num_experts, address)
    info = describe(name, kind, plain, card, architecture, settings.device, settings.dtype)
    info = replace(info, execution=Execution(choice.reason), max_tokens=tokenizing.max_tokens)

    def check(run: Run) -> str:
        golden = golden_problem(info, card, tokenizing, lambda inputs: run(_ids(tokenizing, inputs)))
        return golden or probe_problem(info, tokenizing, lambda items: run([item.features for item in items]))

    if chosen == "cpu":
        torch.set_num_threads(settings.num_threads)
    group = Group(settings, target, launcher, check)
    group.open()
    return ShardedTextModel(info, tokenizing, group, config.num_experts_per_tok)


def _described(
    directory: Path, config: PreTrainedConfig
) -> tuple[FewshardTextConfig | ShardableConfig, type[TextClassifier], str, TextPreprocessor]:
    """Return the experts, the class that would run the whole, the network's class, and the tokenizer."""
    if isinstance(config, FewshardTextConfig):
        tokenizing = packed_preprocessor(directory, config, reports_routing=False)
        return config, PackedText, "FewshardTextForSequenceClassification", tokenizing
    network = without_weights(config)
    tokenizing = TextPreprocessor(
        directory, text_limit(network), num_rows=num_rows(network), num_types=num_types(network)
    )
    return shardable_config(network), PaddedText, type(network).__name__, tokenizing


def _settings(
    path: str, dtype: str, device: str, experts: ExpertsSettings, num_experts: int, address: str
) -> GroupSettings:
    """Resolve the settings that the configuration leaves open."""
    is_name = path.startswith(("zoo:", "hf:"))
    follows_loads = experts.placement == "balanced" and experts.shards > 1
    return GroupSettings(
        # Workers on other machines resolve names themselves; a directory must exist under the same path
        # there.
        path=path if is_name else str(resolve(path).absolute()),
        dtype=dtype,
        device=device,
        num_shards=experts.shards,
        max_slots_per_shard=experts.max_slots(num_experts),
        allows_degraded=experts.degraded,
        timeout_s=experts.exchange_timeout_s,
        address=address,
        num_threads=max(1, available_cores() // experts.shards),
        rebalance_s=experts.rebalance_s if follows_loads else 0.0,
        spare_bytes=round(experts.spare_mib * 2**20),
    )


def _ids(tokenizing: TextPreprocessor, inputs: Sequence[Input]) -> list[TokenIds]:
    return [item.features for item in tokenizing.items(inputs, truncate=True)]
