"""The expert layer of a shard: gathers the rows of all shards and computes those of its own experts.

`FewshardTextForSequenceClassification` uses it in place of its expert layers. Built by `shard`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewshard_kernels import ExpertWeights, MoeOptions, MoeStats, PackedExperts, Routing, explain, moe_ffn
from fewshard_models.sharding.exchange import Exchange
from fewshard_models.text.configuration import FewshardTextConfig
from fewshard_models.text.layers import choose_experts
from fewshard_models.text.packing import PackedTokens, with_rows

ABSENT = -1
_ALIGNMENT = 32
"""Bytes. Rows on the wire are padded to a multiple, so that parts can be viewed by dtype, and that a 16-bit
row's stride is a multiple of 16 values, from which Triton knows that it may load 16 bytes at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class ExpertMap:
    """The rows that one shard computes in one layer. Entry E of each tensor stands for padding rows.

    slot: int64 [E + 1], local slot of each expert; -1 if it is not on this shard.
    num_copies: int64 [E + 1], number of replicas of each expert.
    copy: int64 [E + 1], index of this shard's replica.
    has_copies: whether any expert has more than one replica.
    """

    slot: Tensor
    num_copies: Tensor
    copy: Tensor
    has_copies: bool

    @classmethod
    def of(
        cls, rank: int, experts: Sequence[Sequence[int]], num_experts: int, device: torch.device
    ) -> "ExpertMap":
        """Build the map of shard `rank`; `experts`: for each rank its experts in slot order."""
        slot = torch.full((num_experts + 1,), ABSENT)
        num_copies = torch.zeros(num_experts + 1, dtype=torch.int64)
        copy = torch.zeros(num_experts + 1, dtype=torch.int64)
        for place, expert in enumerate(experts[rank]):
            slot[expert] = place
        for owner, theirs in enumerate(experts):
            for expert in theirs:
                copy[expert] += owner < rank
                num_copies[expert] += 1
        has_copies = bool((num_copies > 1).any())
        return cls(slot.to(device), num_copies.to(device), copy.to(device), has_copies)

    def local_slots(self, experts: Tensor) -> Tensor:
        """int64 [R, k]: the local slot that serves each choice in `experts` [R, k]; -1 if another shard does.

        The replicas of an expert take its rows in turn, so each choice is served exactly once.
        """
        slots = self.slot[experts]
        if not self.has_copies:
            return slots
        turn = _occurrences(experts.flatten(), len(self.slot)).view_as(experts)
        mine = turn % self.num_copies[experts].clamp(min=1) == self.copy[experts]
        return torch.where(mine, slots, ABSENT)


def _occurrences(values: Tensor, num_values: int) -> Tensor:
    """int64 [N]: the number of earlier equal values for each of `values` [N], all below `num_values`."""
    ordered, order = values.sort(stable=True)
    # Not `bincount`, whose result's size the host of a GPU would wait for.
    counts = torch.zeros(num_values, dtype=torch.int64, device=values.device)
    counts.scatter_add_(0, values, torch.ones_like(values, dtype=torch.int64))
    starts = counts.cumsum(0) - counts
    found = torch.empty_like(order)
    found[order] = torch.arange(len(order), device=order.device) - starts[ordered]
    return found


@dataclass(frozen=True, slots=True, eq=False)
class ExpertBlock:
    """Some experts of one layer in memory, in the order of their slots."""

    experts: tuple[int, ...]
    weights: ExpertWeights | PackedExperts

    @property
    def plain(self) -> ExpertWeights:
        return self.weights.plain if isinstance(self.weights, PackedExperts) else self.weights


@dataclass(frozen=True, slots=True, eq=False)
class ExpertLayer:
    """One layer's experts on one shard, and the exchange for their rows.

    blocks: the experts; the slots of `duties` count through all blocks. Empty if no experts are here.
    """

    exchange: Exchange
    duties: ExpertMap
    blocks: tuple[ExpertBlock, ...]
    activation: str
    is_gated: bool = False

    def __call__(self, x: Tensor, routing: Routing, num_rows: int) -> tuple[Tensor, Tensor]:
        """Returns y [T, H] for this shard's rows `x` [T, H], and the number of choices this shard computed.

        All shards must call with the same `num_rows` >= their T. Shapes are therefore static and need not be
        negotiated. A choice whose expert is on no shard contributes nothing.
        """
        wire = _Wire.of(x, routing.experts.shape[1])
        sent = wire.write(x, routing, num_rows, num_experts=len(self.duties.slot) - 1)
        rows, everyone = wire.read(self.exchange.all_gather(sent), x.dtype)
        local = Routing(everyone.weights, self.duties.local_slots(everyone.experts.long()))
        y, num_computed = self._compute(rows, local)
        return self.exchange.reduce_scatter(y)[: x.shape[0]], num_computed

    def _compute(self, rows: Tensor, local: Routing) -> tuple[Tensor, Tensor]:
        if not self.blocks:
            return torch.zeros_like(rows), torch.zeros((), dtype=torch.int64, device=rows.device)
        if len(self.blocks) == 1:
            return self._compute_block(self.blocks[0], rows, local)
        first, parts = 0, []
        for block in self.blocks:
            slots = local.experts - first
            is_here = (slots >= 0) & (slots < len(block.experts))
            mine = Routing(local.weights, torch.where(is_here, slots, ABSENT))
            parts.append(self._compute_block(block, rows, mine))
            first += len(block.experts)
        products, counts = zip(*parts, strict=True)
        return sum(products[1:], products[0]), sum(counts[1:], counts[0])

    def _compute_block(self, block: ExpertBlock, rows: Tensor, local: Routing) -> tuple[Tensor, Tensor]:
        if self._skips_absent(block, rows, local):
            y, stats = self._multiply(block, rows, local)
            return y, stats.expert_rows.sum()
        served, choices = torch.where(local.experts >= 0)
        own = Routing(local.weights[served, choices, None], local.experts[served, choices, None])
        y, _ = self._multiply(block, rows[served], own)
        return _spread(y, served, rows, local.experts.shape[1]), torch.tensor(len(served), device=rows.device)

    def _skips_absent(self, block: ExpertBlock, rows: Tensor, local: Routing) -> bool:
        """Whether the kernels accept choices of absent experts. Then shapes are static and the host does not
        wait for the device."""
        if explain(rows.device).path != "triton" or not isinstance(block.weights, ExpertWeights):
            return False
        from fewshard_kernels.moe_ffn.triton import supports

        options = MoeOptions(local.experts.shape[1], self.activation, self.is_gated)
        return supports(rows, local, block.weights, options) is None

    def _multiply(self, block: ExpertBlock, rows: Tensor, routing: Routing) -> tuple[Tensor, MoeStats]:
        weights = (block.weights,) if isinstance(block.weights, PackedExperts) else block.weights
        return moe_ffn(rows, routing, *weights, activation=self.activation, gated=self.is_gated)


def _spread(y: Tensor, served: Tensor, like: Tensor, top_k: int) -> Tensor:
    """Zeros like `like`, with `y` added to the rows `served`, which may repeat."""
    if top_k == 1:
        return torch.zeros_like(like).index_copy_(0, served, y)
    out = torch.zeros(like.shape, dtype=torch.float32, device=like.device)
    return out.index_add_(0, served, y.float()).to(like.dtype)


@dataclass(frozen=True, slots=True)
class _Wire:
    """Byte layout of one row: hidden state, weights of its choices (fp32), their experts (int32).

    hidden, weights, experts: end of the hidden state, and starts of the other two parts.
    end: end of the row.
    """

    hidden: int
    weights: int
    experts: int
    end: int

    @classmethod
    def of(cls, like: Tensor, top_k: int) -> "_Wire":
        hidden = like.shape[1] * like.element_size()
        weights = _aligned(hidden, 4)
        return cls(hidden, weights, weights + 4 * top_k, weights + 8 * top_k)

    def write(self, x: Tensor, routing: Routing, num_rows: int, num_experts: int) -> Tensor:
        """uint8 [num_rows, W]; padding rows choose expert `num_experts`, which does not exist."""
        length = x.shape[0]
        wire = torch.zeros(num_rows, _aligned(self.end, _ALIGNMENT), dtype=torch.uint8, device=x.device)
        wire[:length, : self.hidden].view(x.dtype).copy_(x)
        wire[:length, self.weights : self.experts].view(torch.float32).copy_(routing.weights)
        experts = wire[:, self.experts : self.end].view(torch.int32)
        experts[:length] = routing.experts
        experts[length:] = num_experts
        return wire

    def read(self, wire: Tensor, dtype: torch.dtype) -> tuple[Tensor, Routing]:
        rows = wire[:, : self.hidden].view(dtype)
        weights = wire[:, self.weights : self.experts].view(torch.float32)
        return rows, Routing(weights, wire[:, self.experts : self.end].view(torch.int32))


def _aligned(num_bytes: int, alignment: int) -> int:
    return -(-num_bytes // alignment) * alignment


class ShardedFeedForward(nn.Module):
    """Replaces `MoeFeedForward` in a sharded encoder; holds only the router.

    The shard sets `layer` and `num_rows` before each pass and reads `num_computed` after it.
    """

    def __init__(self, config: FewshardTextConfig) -> None:
        super().__init__()
        self.router = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        self.config = config
        self.layer: ExpertLayer | None = None
        self.num_rows = 0
        self.num_computed = torch.zeros((), dtype=torch.int64)

    def forward(self, hidden: Tensor, packed: PackedTokens) -> tuple[Tensor, MoeStats]:
        """`hidden` may have padding rows after the tokens; they are not routed."""
        assert self.layer is not None, "the shard has activated no formation. This is a bug."
        tokens = hidden[: packed.num_tokens]
        routing, stats = choose_experts(tokens, packed, self.router, self.config)
        out, self.num_computed = self.layer(tokens, routing, self.num_rows)
        return with_rows(out, len(hidden)), stats
