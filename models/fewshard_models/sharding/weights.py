"""Loads a shard's part of a checkpoint: all weights except the experts, and selected experts.

Called by `shard`. Experts are read from memory-mapped safetensors files, which are closed at once, because
mapped pages would count as the shard's memory.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from fewshard_kernels import ExpertWeights
from fewshard_models.agreement import require_complete, require_read
from fewshard_models.checkpoint import load_config
from fewshard_models.classifier.limits import has_experts
from fewshard_models.errors import CheckpointError
from fewshard_models.quantised import quantisation_of
from fewshard_models.sharding.experts import ShardedFeedForward
from fewshard_models.sharding.transformers_body import TYPES
from fewshard_models.text import FewshardTextConfig, FewshardTextForSequenceClassification
from fewshard_models.weight_files import opened, weight_files

_EXPERT_TENSOR = re.compile(r"layers\.\d+\.ffn\.(w1|b1|w2|b2)$")


def load_shardable_config(directory: Path) -> PreTrainedConfig:
    """The configuration of a checkpoint that can be sharded. Raises CheckpointError if it cannot."""
    config = load_config(directory)
    if not isinstance(config, FewshardTextConfig) and config.model_type not in TYPES:
        raise CheckpointError(
            f"{directory} is a {config.model_type} model; fewshard_text, {', '.join(TYPES)} can be sharded: "
            "leave experts out of its configuration"
        )
    if quantisation_of(config) is not None:
        raise CheckpointError(
            f"{directory} has quantised weights, which are not read in parts; leave experts out of its "
            "configuration"
        )
    if not has_experts(config):
        raise CheckpointError(
            f"{directory} is a dense model and has no experts to shard; leave experts out of its "
            "configuration, and give it replicas instead"
        )
    return config


class OwnBody:
    """Our own encoder without its experts; as `TransformersBody`."""

    is_gated = False

    def __init__(
        self, directory: Path, config: FewshardTextConfig, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._directory = directory
        self.config = config
        self.activation = config.hidden_act
        width, hidden = config.expert_size, config.hidden_size
        self.expert_shapes = ((width, hidden), (width,), (hidden, width), (hidden,))
        self._network = load_without_experts(directory, config, dtype, device)
        self.forward_packed = self._network.forward_packed
        layers = [self._network.get_submodule(f"layers.{index}.ffn") for index in config.expert_layers]
        self.feed_forwards = cast(list[ShardedFeedForward], layers)

    def read_experts(
        self, layer: int, experts: Sequence[int], into: ExpertWeights, places: Sequence[int]
    ) -> None:
        """See the function of this name."""
        read_experts(self._directory, layer, experts, into, places)


def fingerprint(directory: Path) -> str:
    """Identifies a checkpoint by configuration, tensor names, shapes and sizes, without reading the weights.

    Raises CheckpointError if there is none.
    """
    digest = hashlib.sha256((_existing(directory) / "config.json").read_bytes())
    for file in weight_files(directory):
        with file.open("rb") as head:
            length = int.from_bytes(head.read(8), "little")
            digest.update(head.read(min(length, file.stat().st_size)))
        digest.update(str(file.stat().st_size).encode())
    return digest.hexdigest()[:16]


def _existing(directory: Path) -> Path:
    if not (directory / "config.json").is_file() or not weight_files(directory):
        raise CheckpointError(f"there is no checkpoint at {directory}; copy it there")
    return directory


def load_without_experts(
    directory: Path, config: FewshardTextConfig, dtype: torch.dtype, device: torch.device
) -> FewshardTextForSequenceClassification:
    """The network in eval mode; its expert layers are `ShardedFeedForward` without experts yet.

    Raises CheckpointError if weights are missing or damaged.
    """
    with torch.device("meta"):
        network = FewshardTextForSequenceClassification(config)
        for index in config.expert_layers:
            network.layers[index].ffn = ShardedFeedForward(config)
    kept = set(network._keep_in_fp32_modules_strict)
    weights = {
        name: tensor.to(device, torch.float32 if kept & set(name.split(".")) else dtype, copy=True)
        for name, tensor in _tensors(directory)
    }
    _require_fit(directory, network, weights)
    network.load_state_dict(weights, assign=True)
    network.prepare_for_inference()
    return network


def _tensors(directory: Path) -> Iterator[tuple[str, Tensor]]:
    """All tensors except the experts, as views that are valid only until the next one is requested."""
    for file in weight_files(directory):
        with opened(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118  not a mapping
                if not _EXPERT_TENSOR.search(name):
                    yield name, tensors.get_tensor(name)


def _require_fit(
    directory: Path, network: FewshardTextForSequenceClassification, weights: dict[str, Tensor]
) -> None:
    """Require all of the network's tensors in their shapes; drop others, which must be harmless."""
    wanted = network.state_dict()
    found = {name: tensor.shape for name, tensor in weights.items()}
    require_complete(directory, [name for name, like in wanted.items() if found.get(name) != like.shape])
    unread = found.keys() - wanted.keys()
    require_read(directory, unread)
    for name in unread:
        del weights[name]


def read_experts(
    directory: Path, layer: int, experts: Sequence[int], into: ExpertWeights, places: Sequence[int]
) -> None:
    """Fill the `places` of `into` [S, …] with these experts of encoder layer `layer`, cast to its dtype.

    Raises CheckpointError if the files are damaged.
    """
    missing = {f"layers.{layer}.ffn.{field}": getattr(into, field) for field in into._fields}
    for file in weight_files(directory):
        with opened(file) as tensors:
            for name in sorted(missing.keys() & set(tensors.keys())):
                found, target = tensors.get_slice(name), missing[name]
                if found.get_shape()[1:] == list(target.shape[1:]):
                    _copy_rows(found, experts, target, places)
                    del missing[name]
    require_complete(directory, sorted(missing))


def _copy_rows(found: Any, experts: Sequence[int], target: Tensor, places: Sequence[int]) -> None:
    """Copy rows `experts` of a file slice to rows `places` of `target`."""
    for expert, place in zip(experts, places, strict=True):
        target[place].copy_(found[expert])
