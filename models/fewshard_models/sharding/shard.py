"""One shard of a group: the network without experts, plus its experts. Knows no processes or sockets.

Called by `fewshard_serve.group`, in the leader and in every worker. A shard checks the free memory before it
loads more experts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fewshard_kernels import ExpertWeights, MoeStats, PackedExperts, pack_experts
from fewshard_models.errors import NoRoomError
from fewshard_models.sharding.exchange import Exchange, LocalExchange
from fewshard_models.sharding.experts import ExpertLayer, ExpertMap, ShardedFeedForward
from fewshard_models.sharding.transformers_body import ShardedExperts, TransformersBody
from fewshard_models.sharding.weights import OwnBody, load_shardable_config
from fewshard_models.text import FewshardTextConfig, PackedTokens

CGROUP = Path("/sys/fs/cgroup")
UNLIMITED = 2**63


def available_bytes(device: torch.device) -> int:
    """Bytes that can be allocated without swapping, within a container's limit."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min(_of_machine(), _of_container())


def _of_machine() -> int:
    """Free memory of the machine; unlimited without psutil, since models may run with torch alone."""
    try:
        import psutil
    except ImportError:
        return UNLIMITED
    return int(psutil.virtual_memory().available)


def _of_container() -> int:
    """Free memory within the container's limit; droppable page cache is free. psutil ignores cgroups."""
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no container, another version of cgroups, or "max"
        return UNLIMITED
    return limit - used + int(stat.get("inactive_file", 0))


Experts = tuple[tuple[int, ...], ...]
"""The experts of one shard for each layer, in slot order."""


@dataclass(frozen=True, slots=True, eq=False)
class LayerExperts:
    """One layer's experts in memory, in slot order; `weights` is None if there are none."""

    experts: tuple[int, ...]
    weights: ExpertWeights | PackedExperts | None

    @property
    def plain(self) -> ExpertWeights | None:
        return self.weights.plain if isinstance(self.weights, PackedExperts) else self.weights


class ShardOutput(NamedTuple):
    """The result of one pass.

    logits: fp32 [num_items, num_labels] on the host, for this shard's items.
    moe_stats: statistics of their tokens.
    num_computed: int64 [num_expert_layers], choices that this shard's experts computed for all shards.
    """

    logits: Tensor
    moe_stats: list[MoeStats]
    num_computed: Tensor


class Shard:
    """Loads experts with `stage` while running, and switches to them with `activate` between two passes.

    `stage` may run in another thread than `run`; `activate` and `run` must share one thread.
    """

    def __init__(self, directory: Path, dtype: torch.dtype, device: torch.device) -> None:
        config = load_shardable_config(directory)
        self.device = device
        self._dtype = dtype
        self._body: TransformersBody | OwnBody = (
            OwnBody(directory, config, dtype, device)
            if isinstance(config, FewshardTextConfig)
            else TransformersBody(directory, config, dtype, device)
        )
        self.config = self._body.config
        self._held = tuple(LayerExperts((), None) for _ in self.config.expert_layers)
        self._exchange: Exchange = LocalExchange()

    def stage(self, experts: Experts) -> tuple[LayerExperts, ...]:
        """Load these experts; layers that do not change are shared with the running ones.

        Raises NoRoomError if they do not fit beside the running ones, CheckpointError for damaged files.
        """
        held = self._held
        changed = [now for now, then in zip(experts, held, strict=True) if now != then.experts]
        self._require_room(sum(map(len, changed)))
        try:
            return tuple(
                then if now == then.experts else self._load(layer, now, then)
                for layer, now, then in zip(self.config.expert_layers, experts, held, strict=True)
            )
        except torch.OutOfMemoryError as error:
            raise NoRoomError(f"experts do not fit on {self.device}: {error}") from error

    def activate(
        self, staged: Sequence[LayerExperts], everyone: Sequence[Experts], exchange: Exchange
    ) -> None:
        """Use these experts from now on; `everyone`: the experts of each rank of the exchange."""
        self._held = tuple(staged)
        self._exchange = exchange
        for number, (feed_forward, mine) in enumerate(zip(self._feed_forwards, staged, strict=True)):
            by_rank = [experts[number] for experts in everyone]
            duties = ExpertMap.of(exchange.rank, by_rank, self.config.num_experts, self.device)
            feed_forward.layer = ExpertLayer(
                exchange, duties, mine.weights, self._body.activation, self._body.is_gated
            )

    def run(self, packed: PackedTokens, num_rows: int) -> ShardOutput:
        """Run one pass over this shard's own items, if any; it also computes other shards' tokens.

        `num_rows`: the maximum number of tokens of any shard in this pass. Raises ExchangeError.
        """
        for feed_forward in self._feed_forwards:
            feed_forward.num_rows = num_rows
        with torch.inference_mode():
            out = self._body.forward_packed(packed)
            computed = torch.stack([each.num_computed.cpu() for each in self._feed_forwards])
            logits = out.logits.cpu()
        self._exchange.check()
        return ShardOutput(logits, out.moe_stats, computed)

    @property
    def num_bytes_an_expert(self) -> int:
        """Bytes of one expert in one layer."""
        numbers: int = sum(math.prod(shape) for shape in self._body.expert_shapes if shape)
        return numbers * int(self._dtype.itemsize)

    @property
    def _feed_forwards(self) -> Sequence[ShardedFeedForward | ShardedExperts]:
        return self._body.feed_forwards

    def _require_room(self, num_experts: int) -> None:
        needed, there = num_experts * self.num_bytes_an_expert, available_bytes(self.device)
        if needed > there:
            raise NoRoomError(
                f"{num_experts} experts need {needed / 1e9:.2f} GB on {self.device}, "
                f"of which {there / 1e9:.2f} GB are left"
            )

    def _load(self, layer: int, experts: tuple[int, ...], held: LayerExperts) -> LayerExperts:
        if not experts:
            return LayerExperts((), None)
        weights = self._empty(len(experts))
        kept = [(place, held.experts.index(e)) for place, e in enumerate(experts) if e in held.experts]
        if held.plain is not None and kept:
            _copy(held.plain, weights, kept)
        read = [place for place, expert in enumerate(experts) if expert not in held.experts]
        self._body.read_experts(layer, [experts[place] for place in read], weights, read)
        return LayerExperts(experts, self._packed(weights))

    def _empty(self, num_experts: int) -> ExpertWeights:
        w1, b1, w2, b2 = (
            None if shape is None else torch.empty(num_experts, *shape, dtype=self._dtype, device=self.device)
            for shape in self._body.expert_shapes
        )
        assert w1 is not None
        assert w2 is not None
        return ExpertWeights(w1, b1, w2, b2)

    def _packed(self, weights: ExpertWeights) -> ExpertWeights | PackedExperts:
        """For a CPU, the fastest layout without a copy: experts are sharded because memory is short."""
        if self.device.type != "cpu":
            return weights
        return pack_experts(*weights, gated=self._body.is_gated, copies=False)


def _copy(source: ExpertWeights, target: ExpertWeights, places: list[tuple[int, int]]) -> None:
    """Copy experts; `places`: pairs of an index in `target` and its index in `source`."""
    for to, of in zip(target, source, strict=True):
        if to is not None and of is not None:
            for place, origin in places:
                to[place].copy_(of[origin])
