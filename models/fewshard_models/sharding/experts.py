"""The expert layer of a shard: everyone's rows come together, each shard multiplies those of its experts.

Called by `FewshardTextForSequenceClassification` in place of its own expert layers; built by `shard`.
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
_ALIGNMENT = 16  # bytes; a row on the wire is padded to it, so that its parts can be viewed in their dtypes


@dataclass(frozen=True, slots=True, eq=False)
class ExpertMap:
    """Which rows one shard multiplies in one layer.

    `slot`: int64 [E + 1], the local slot of each expert, -1 where it is not here (and for padding, number E);
    `num_copies`, `copy`: int64 [E + 1], how many shards serve the expert, and the how-manieth this one is.
    """

    slot: Tensor
    num_copies: Tensor
    copy: Tensor
    has_copies: bool

    @classmethod
    def of(
        cls, rank: int, experts: Sequence[Sequence[int]], num_experts: int, device: torch.device
    ) -> "ExpertMap":
        """`experts`: for each rank its experts in the order of their slots."""
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
        """int64 [R, k]: the slot here that serves each choice of `experts` [R, k], -1 where another does.

        Rows of an expert with copies go to them in turn, so that each choice is served exactly once.
        """
        slots = self.slot[experts]
        if not self.has_copies:
            return slots
        turn = _occurrences(experts.flatten(), len(self.slot)).view_as(experts)
        mine = turn % self.num_copies[experts].clamp(min=1) == self.copy[experts]
        return torch.where(mine, slots, ABSENT)


def _occurrences(values: Tensor, num_values: int) -> Tensor:
    """int64 [N]: how many equal ones stand before each of `values` [N], which are below `num_values`."""
    ordered, order = values.sort(stable=True)
    counts = torch.bincount(values, minlength=num_values)
    starts = counts.cumsum(0) - counts
    found = torch.empty_like(order)
    found[order] = torch.arange(len(order), device=order.device) - starts[ordered]
    return found


@dataclass(frozen=True, slots=True, eq=False)
class ExpertLayer:
    """One layer's experts on one shard, with the exchange they serve. `weights` None: none are here."""

    exchange: Exchange
    duties: ExpertMap
    weights: ExpertWeights | PackedExperts | None
    activation: str

    def __call__(self, x: Tensor, routing: Routing, num_rows: int) -> tuple[Tensor, Tensor]:
        """y [T, H] of this shard's rows `x` [T, H], and how many choices this shard multiplied for all.

        Every shard of the exchange calls with the same `num_rows` >= its T: static shapes, nothing is counted
        beforehand. A choice whose expert no shard serves contributes nothing.
        """
        wire = _Wire.of(x, routing.experts.shape[1])
        sent = wire.write(x, routing, num_rows, num_experts=len(self.duties.slot) - 1)
        rows, everyone = wire.read(self.exchange.all_gather(sent), x.dtype)
        local = Routing(everyone.weights, self.duties.local_slots(everyone.experts.long()))
        y, num_computed = self._compute(rows, local)
        return self.exchange.reduce_scatter(y)[: x.shape[0]], num_computed

    def _compute(self, rows: Tensor, local: Routing) -> tuple[Tensor, Tensor]:
        if self.weights is None:
            return torch.zeros_like(rows), torch.zeros((), dtype=torch.int64)
        if self._skips_absent(rows, local):
            y, stats = self._multiply(rows, local)
            return y, stats.expert_rows.sum()
        served, choices = torch.where(local.experts >= 0)
        own = Routing(local.weights[served, choices, None], local.experts[served, choices, None])
        y, _ = self._multiply(rows[served], own)
        return _spread(y, served, rows, local.experts.shape[1]), torch.tensor(len(served))

    def _skips_absent(self, rows: Tensor, local: Routing) -> bool:
        """Whether the kernels take choices without an expert here: then shapes are static, and nothing waits
        for the device."""
        if explain(rows.device).path != "triton" or not isinstance(self.weights, ExpertWeights):
            return False
        from fewshard_kernels.moe_ffn.triton import supports

        options = MoeOptions(top_k=local.experts.shape[1], activation=self.activation)
        return supports(rows, local, self.weights, options) is None

    def _multiply(self, rows: Tensor, routing: Routing) -> tuple[Tensor, MoeStats]:
        weights = (self.weights,) if isinstance(self.weights, PackedExperts) else self.weights
        assert weights is not None
        return moe_ffn(rows, routing, *weights, activation=self.activation)


def _spread(y: Tensor, served: Tensor, like: Tensor, top_k: int) -> Tensor:
    """The rows `served` filled with `y`, summed where a row has several; zeros elsewhere."""
    if top_k == 1:
        return torch.zeros_like(like).index_copy_(0, served, y)
    out = torch.zeros(like.shape, dtype=torch.float32, device=like.device)
    return out.index_add_(0, served, y.float()).to(like.dtype)


@dataclass(frozen=True, slots=True)
class _Wire:
    """One row as bytes: the hidden state, the weights of its choices (fp32), their experts (int32)."""

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
        """uint8 [num_rows, W]; rows beyond those of `x` choose expert `num_experts`, which there is not."""
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
    """Stands where the encoder has `MoeFeedForward`; holds the router alone.

    `layer` and `num_rows` are set by the shard before each pass; `num_computed` is what the last one left.
    """

    def __init__(self, config: FewshardTextConfig) -> None:
        super().__init__()
        self.router = nn.Parameter(torch.empty(config.num_experts, config.hidden_size))
        self.config = config
        self.layer: ExpertLayer | None = None
        self.num_rows = 0
        self.num_computed = torch.zeros((), dtype=torch.int64)

    def forward(self, hidden: Tensor, packed: PackedTokens) -> tuple[Tensor, MoeStats]:
        """`hidden` may have rows beyond the tokens; they go to no expert."""
        assert self.layer is not None, "the shard has activated no formation. This is a bug."
        tokens = hidden[: packed.num_tokens]
        routing, stats = choose_experts(tokens, packed, self.router, self.config)
        out, self.num_computed = self.layer(tokens, routing, self.num_rows)
        return with_rows(out, len(hidden)), stats
