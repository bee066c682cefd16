"""The part of a network of transformers that every shard holds: all but the experts. `shard` runs it.

Experts are read straight from safetensors, stored one by one or merged. What is beside them, shared experts
too, is whole on each shard.
"""

import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig

from fewshard_kernels import ExpertWeights, MoeStats, Routing, routing_stats
from fewshard_models.agreement import require_complete, require_experts, require_read
from fewshard_models.classifier.routed_experts import RoutedExperts, own_rows
from fewshard_models.errors import CheckpointError
from fewshard_models.experts_interface import activation_of
from fewshard_models.lazy_compiler import no_draws_on_meta
from fewshard_models.sharding.experts import ExpertLayer
from fewshard_models.text import PackedTokens
from fewshard_models.weight_files import StoredTensor, opened, require_safetensors, stored_tensors

TYPES = (
    *("deepseek_v2", "deepseek_v3", "hunyuan_v1_moe", "jamba", "minimax", "mistral4"),
    *("mixtral", "phimoe", "qwen2_moe", "qwen3_moe", "qwen3_next"),
)
"""The model types whose shards were compared with the whole network."""
_EXPERT = re.compile(r"\.experts\.(?:(?P<number>\d+)\.)?(?P<part>\w+?)(?:\.weight)?$")
_PARTS = {"gate_proj": 0, "w1": 0, "up_proj": 1, "w3": 1, "down_proj": 2, "w2": 2}
"""Of one expert: the gate, the up projection, and the one down."""


@dataclass(frozen=True, slots=True)
class ShardableConfig:
    """What a group needs to know of a network whose experts are spread.

    expert_layers: one number for each layer with experts.
    """

    num_experts: int
    num_experts_per_tok: int
    expert_layers: tuple[int, ...]


def without_weights(config: PreTrainedConfig) -> Any:
    """Return the network of a configuration, on the meta device."""
    with torch.device("meta"), no_draws_on_meta():
        return AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)


def shardable_config(network: Any) -> ShardableConfig:
    """Return what a group needs to know of a network."""
    layers = RoutedExperts(network).layers
    top_k = network.config.num_experts_per_tok
    return ShardableConfig(layers[0].num_experts, top_k, tuple(range(len(layers))))


class ShardedExperts(nn.Module):
    """Replaces a layer's experts. The shard sets `layer` and `num_rows` before each pass and reads
    `num_computed` after it."""

    _is_expert_parallel = True

    def __init__(self, num_experts: int, top_k: int, hidden_size: int) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.top_k = top_k
        self.hidden_size = hidden_size
        self.layer: ExpertLayer | None = None
        self.num_rows = 0
        self.num_computed = torch.zeros((), dtype=torch.int64)

    def forward(self, hidden: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """`hidden` [T, H] of this shard's own tokens; `experts` and `weights` [T, k]. Returns [T, H]."""
        assert self.layer is not None, "the shard has activated no formation. This is a bug."
        y, self.num_computed = self.layer(hidden, Routing(weights.float(), experts), self.num_rows)
        return y


@dataclass(frozen=True, slots=True)
class BodyOutput:
    """Logits [num_items, num_labels], fp32, and the statistics of each layer with experts."""

    logits: Tensor
    moe_stats: list[MoeStats]


class TransformersBody:
    """The network without its experts.

    config: what the group needs to know.
    feed_forwards: the layers whose experts are elsewhere, in their order.
    activation: of the experts.
    """

    is_gated = True

    def __init__(
        self, directory: Path, config: PreTrainedConfig, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._directory, self._device, self._dtype = directory, device, dtype
        if config.get_text_config().pad_token_id is None:
            raise CheckpointError(
                f"{directory}/config.json has no pad_token_id, which shards pad with; add one"
            )
        self._pad_id = int(config.get_text_config().pad_token_id)
        stored = stored_tensors(directory, require_safetensors(directory))
        network = without_weights(config)
        self.config = shardable_config(network)
        require_experts(directory, network, stored)
        self.feed_forwards = self._without_experts(network, config)
        self._network: Any = network.eval()
        self._load(stored)
        self._names = {name: where for name in stored if (where := _layer_of(name)) is not None}
        self._experts = RoutedExperts(network)

    def _without_experts(self, network: Any, config: PreTrainedConfig) -> list[ShardedExperts]:
        """Replace the experts, which have no weights yet. Raises CheckpointError if they cannot be spread."""
        found = RoutedExperts(network).layers
        try:
            activations = {activation_of(layer.module) for layer in found}
        except ValueError as error:
            raise CheckpointError(f"{self._directory} cannot be sharded: {error}") from error
        (self.activation,) = activations
        first = found[0].module
        self.expert_shapes = (
            tuple(first.gate_up_proj.shape[1:]),
            None,
            tuple(first.down_proj.shape[1:]),
            None,
        )
        layers: list[ShardedExperts] = []
        for layer in found:
            parent, _, name = layer.name.rpartition(".")
            layers.append(
                ShardedExperts(layer.num_experts, config.num_experts_per_tok, int(first.down_proj.shape[1]))
            )
            setattr(network.get_submodule(parent), name, layers[-1])
        return layers

    def _load(self, stored: Mapping[str, StoredTensor]) -> None:
        """Load all but the experts; compute the tables that files do not hold."""
        wanted = self._network.state_dict()
        found: dict[str, Tensor] = {}
        for file in dict.fromkeys(tensor.file for tensor in stored.values()):
            with opened(file) as tensors:
                for name in tensors.keys():  # noqa: SIM118  not a mapping
                    if not _EXPERT.search(name):
                        found[_renamed(name, wanted)] = tensors.get_tensor(name).to(
                            self._device, self._dtype, copy=True
                        )
        missing = [
            name for name, like in wanted.items() if name not in found or found[name].shape != like.shape
        ]
        require_complete(self._directory, missing)
        require_read(self._directory, found.keys() - wanted.keys())
        self._network.load_state_dict({name: found[name] for name in wanted}, assign=True)
        for name, module in list(self._network.named_modules()):
            if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
                parent, _, own = name.rpartition(".")
                again = type(module)(config=self._network.config).to(self._device)
                setattr(self._network.get_submodule(parent), own, again)

    def forward_packed(self, packed: PackedTokens) -> BodyOutput:
        """Run one pass over these items, padded; experts get no padding. Without items, other shards' rows
        are computed all the same."""
        if not packed.lengths:
            return self._without_items()
        length, lengths = max(packed.lengths), list(packed.lengths)
        ids = torch.full((len(lengths), length), self._pad_id, device=self._device)
        mask = torch.zeros_like(ids)
        for row, item in enumerate(packed.input_ids.split(lengths)):
            ids[row, : len(item)] = item
            mask[row, : len(item)] = 1
        own = own_rows(lengths, length, "right")
        with self._experts.watched(None if own is None else own.to(self._device)) as chosen:
            logits = self._network(input_ids=ids, attention_mask=mask).logits.float()
        return BodyOutput(logits, [each.stats for each in chosen])

    def _without_items(self) -> BodyOutput:
        stats = []
        for layer in self.feed_forwards:
            hidden = torch.zeros(0, layer.hidden_size, dtype=self._dtype, device=self._device)
            experts = torch.zeros(0, layer.top_k, dtype=torch.int64, device=self._device)
            layer(hidden, experts, experts.float())
            stats.append(routing_stats(hidden.new_zeros(0, layer.num_experts), experts))
        return BodyOutput(torch.zeros(0, self._network.config.num_labels), stats)

    def read_experts(
        self, layer: int, experts: Sequence[int], into: ExpertWeights, places: Sequence[int]
    ) -> None:
        """Fill the `places` of `into` [S, …] with these experts of a layer. Raises CheckpointError."""
        where = sorted(set(self._names.values()))[layer]
        place_of = dict(zip(experts, places, strict=True))
        width = into.w1.shape[1] // 2
        left = {(expert, part) for expert in experts for part in range(3)}
        for file in require_safetensors(self._directory):
            with opened(file) as tensors:
                for name in tensors.keys():  # noqa: SIM118  not a mapping
                    named = _EXPERT.search(name)
                    if named is None or self._names[name] != where:
                        continue
                    if named["number"] is None:
                        held = tensors.get_slice(name)
                        target, parts = (
                            (into.w1, (0, 1)) if named["part"] == "gate_up_proj" else (into.w2, (2,))
                        )
                        for expert, place in place_of.items():
                            target[place].copy_(held[expert])
                            left -= {(expert, part) for part in parts}
                    elif (expert := int(named["number"])) in place_of:
                        part, row = _PARTS[named["part"]], place_of[expert]
                        halves = (into.w1[row, :width], into.w1[row, width:], into.w2[row])
                        halves[part].copy_(tensors.get_tensor(name))
                        left.discard((expert, part))
        require_complete(self._directory, [f"expert {expert} of {where}" for expert, _ in sorted(left)])


def _layer_of(name: str) -> tuple[int, ...] | None:
    """Return the numbers in the name of an expert's layer, by which layers are ordered; None for others."""
    found = _EXPERT.search(name)
    return None if found is None else tuple(map(int, re.findall(r"\d+", name[: found.start()])))


def _renamed(name: str, wanted: Container[str]) -> str:
    """Return the name in the network: files of Mixtral and PhiMoE call the layer or its router otherwise."""
    name = name.replace(".block_sparse_moe.", ".mlp.")
    return name if name in wanted else name.replace(".mlp.gate.", ".mlp.router.")
