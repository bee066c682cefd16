"""One shard of a group: the network without experts, plus its experts. Knows no processes or sockets.

Called by `fewshard_serve.group`, in the leader and in every worker. A shard checks the free memory before it
loads more experts.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from fewshard_kernels import ExpertWeights, MoeStats, PackedExperts, pack_experts
from fewshard_models.errors import NoRoomError
from fewshard_models.sharding.exchange import Exchange, LocalExchange
from fewshard_models.sharding.experts import ExpertBlock, ExpertLayer, ExpertMap, ShardedFeedForward
from fewshard_models.sharding.transformers_body import ShardedExperts, TransformersBody
from fewshard_models.sharding.weights import OwnBody, load_shardable_config
from fewshard_models.text import FewshardTextConfig, PackedTokens

CGROUP = Path("/sys/fs/cgroup")
UNLIMITED = 2**63


def available_bytes(device: torch.device) -> int:
    """Bytes that can be allocated without swapping, within a container's limit."""
    if device.type == "cuda":
        # What torch's allocator has cached counts as used there, but serves the next allocation.
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
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


MAX_BLOCKS = 4
"""The most blocks of a layer, each of which is multiplied by itself. More are joined into one."""


@dataclass(frozen=True, slots=True, eq=False)
class LayerExperts:
    """One layer's experts in memory."""

    blocks: tuple[ExpertBlock, ...] = ()

    @property
    def experts(self) -> tuple[int, ...]:
        """In the order of their slots."""
        return tuple(expert for block in self.blocks for expert in block.experts)

    def within(self, experts: Collection[int]) -> "LayerExperts":
        """Return the blocks that hold none but these experts."""
        return LayerExperts(tuple(block for block in self.blocks if set(block.experts) <= set(experts)))


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
        self._held = tuple(LayerExperts() for _ in self.config.expert_layers)
        self._spares = self._held
        self._exchange: Exchange = LocalExchange()

    def stage(self, experts: Experts, at_once: bool = False) -> tuple[LayerExperts, ...]:
        """Load these experts; layers that do not change are shared with the running ones.

        at_once: copy nothing that is in memory. What is missing is multiplied apart from the rest, which is a
            little slower until the next `stage`.

        Raises NoRoomError if they do not fit beside the running ones, CheckpointError for damaged files.
        """
        held, spares = self._held, self._spares
        kept = [self._kept(*layer, at_once) for layer in zip(experts, held, spares, strict=True)]
        self._require_room(sum(len(now) - len(then.experts) for now, then in zip(experts, kept, strict=True)))
        try:
            with _beside(self.device):
                return tuple(
                    self._completed(layer, now, there, [*then.blocks, *spare.blocks])
                    for layer, now, there, then, spare in zip(
                        self.config.expert_layers, experts, kept, held, spares, strict=True
                    )
                )
        except torch.OutOfMemoryError as error:
            raise NoRoomError(f"experts do not fit on {self.device}: {error}") from error

    def keep_spares(self, spares: Sequence[Sequence[Sequence[int]]]) -> None:
        """Hold copies of other shards' experts, so that `stage` finds them in memory.

        spares: for each layer the blocks of experts; a block is used without a copy when all of it is wanted.

        Raises as `stage` does; then there are as many as fitted.
        """
        for number, (layer, wanted) in enumerate(zip(self.config.expert_layers, spares, strict=True)):
            there = {block.experts: block for block in self._spares[number].blocks}
            blocks = [there.get(tuple(experts)) for experts in wanted]
            self._require_room(
                sum(len(one) for one, block in zip(wanted, blocks, strict=True) if block is None)
            )
            with _beside(self.device):
                loaded = [
                    block or self._load(layer, tuple(experts), [])
                    for experts, block in zip(wanted, blocks, strict=True)
                ]
            self._spares = (*self._spares[:number], LayerExperts(tuple(loaded)), *self._spares[number + 1 :])

    def activate(
        self, staged: Sequence[LayerExperts], everyone: Sequence[Experts], exchange: Exchange
    ) -> None:
        """Use these experts from now on; `everyone`: the experts of each rank of the exchange."""
        self._held = tuple(staged)
        self._exchange = exchange
        for number, (feed_forward, mine) in enumerate(zip(self._feed_forwards, staged, strict=True)):
            by_rank = [experts[number] for experts in everyone]
            by_rank[exchange.rank] = mine.experts  # the same ones, in the order in which they are here
            duties = ExpertMap.of(exchange.rank, by_rank, self.config.num_experts, self.device)
            feed_forward.layer = ExpertLayer(
                exchange, duties, mine.blocks, self._body.activation, self._body.is_gated
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

    def _kept(
        self, experts: tuple[int, ...], held: LayerExperts, spare: LayerExperts, at_once: bool
    ) -> LayerExperts:
        """Return the blocks in memory that serve some of these experts as they are."""
        if not at_once:
            # One block alone, so that nothing is slower for long.
            whole = [block for block in held.blocks if set(block.experts) == set(experts)]
            return held if len(whole) == len(held.blocks) else LayerExperts(tuple(whole[:1]))
        if set(held.experts) == set(experts):
            return held
        kept = held.within(experts)
        missing = set(experts) - set(kept.experts)
        kept = LayerExperts((*kept.blocks, *spare.within(missing).blocks))
        return kept if len(kept.blocks) < MAX_BLOCKS else LayerExperts()

    def _completed(
        self, layer: int, experts: tuple[int, ...], kept: LayerExperts, there: Iterable[ExpertBlock]
    ) -> LayerExperts:
        """Return the blocks and one with what they lack. `there`: where experts are in memory."""
        missing = tuple(expert for expert in experts if expert not in kept.experts)
        return LayerExperts((*kept.blocks, self._load(layer, missing, there))) if missing else kept

    def _load(self, layer: int, experts: tuple[int, ...], there: Iterable[ExpertBlock]) -> ExpertBlock:
        """Return a new block. Experts that are in memory are copied; others are read from the checkpoint."""
        weights = self._empty(len(experts))
        to_read = dict(zip(experts, range(len(experts)), strict=True))
        for block in there:
            places = [(to_read.pop(one), at) for at, one in enumerate(block.experts) if one in to_read]
            _copy(block.plain, weights, places)
        self._body.read_experts(layer, list(to_read), weights, list(to_read.values()))
        return ExpertBlock(experts, self._packed(weights))

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


@contextmanager
def _beside(device: torch.device) -> Iterator[None]:
    """Let a GPU copy on a stream of its own, beside the passes, and wait for that at the end."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()
