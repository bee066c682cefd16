"""The feed-forward networks of the encoder's layers, dense and of experts. `modeling` chooses one a layer."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from fewshard_kernels import (
    ExpertWeights,
    Int8Experts,
    MoeStats,
    PackedCache,
    PackedExperts,
    PackedInt8Experts,
    moe_ffn,
)
from fewshard_models.text.configuration import FewshardTextConfig
from fewshard_models.text.layers import Linear, choose_experts
from fewshard_models.text.packing import PackedTokens, with_rows


class DenseFeedForward(nn.Module):
    def __init__(self, config: FewshardTextConfig) -> None:
        super().__init__()
        self.up = Linear(config.hidden_size, config.intermediate_size)
        self.down = Linear(config.intermediate_size, config.hidden_size)
        self.hidden_act, self.activation = config.hidden_act, ACT2FN[config.hidden_act]
        self.activates_inside = False

    def forward(self, hidden: Tensor, packed: PackedTokens) -> tuple[Tensor, None]:
        hidden = self.up(hidden)
        if not (self.activates_inside and self.up.usable):
            hidden = self.activation(hidden)
        return self.down(hidden), None

    def prepare_for_inference(self) -> None:
        self.activates_inside = self.up.pack(self.hidden_act)
        self.down.pack()


class MoeFeedForward(nn.Module):
    """The parameters of one expert layer; `fewshard_kernels.moe_ffn` computes it.

    After `prepare_for_inference`, a packed copy of the experts is kept for the CPU and used in eval mode
    without gradients. It is not part of the state dict. Training and casts drop it; the next inference packs
    the weights again.
    """

    def __init__(self, config: FewshardTextConfig) -> None:
        super().__init__()
        experts, width, hidden = config.num_experts, config.expert_size, config.hidden_size
        self.router = nn.Parameter(torch.empty(experts, hidden))
        self.w1 = nn.Parameter(torch.empty(experts, width, hidden))
        self.b1 = nn.Parameter(torch.zeros(experts, width))
        self.w2 = nn.Parameter(torch.empty(experts, hidden, width))
        self.b2 = nn.Parameter(torch.zeros(experts, hidden))
        self.config = config
        self.packs = False
        self.packed = PackedCache()
        self.int8: Int8Experts | None = None
        self.packed_int8: PackedInt8Experts | None = None

    def code(self, experts: Int8Experts, dtype: torch.dtype) -> None:
        """Compute with 8-bit experts from now on; their results are in `dtype` before they are summed."""
        self.int8, self.packed_int8 = experts, PackedInt8Experts(experts, self.config.hidden_act, dtype)
        for name in ("w1", "b1", "w2", "b2"):
            setattr(self, name, nn.Parameter(getattr(experts, name), requires_grad=False))

    def prepare_for_inference(self) -> None:
        self.packs = self.int8 is None
        if self.packs and self.w1.device.type == "cpu":
            self.packed.get(self._experts(), gated=False)

    def train(self, mode: bool = True) -> "MoeFeedForward":
        if mode:
            self.packed.clear()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "MoeFeedForward":
        self.packed.clear()
        super()._apply(fn, recurse)
        return self

    def forward(self, hidden: Tensor, packed: PackedTokens) -> tuple[Tensor, MoeStats]:
        """`hidden` may have padding rows after the tokens; they are not routed."""
        out, stats = self._tokens(hidden[: packed.num_tokens], packed)
        return with_rows(out, len(hidden)), stats

    def _tokens(self, hidden: Tensor, packed: PackedTokens) -> tuple[Tensor, MoeStats]:
        router, item_stats = (
            choose_experts(hidden, packed, self.router, self.config)
            if self.config.routing == "request"
            else (self.router, None)
        )
        out, stats = moe_ffn(
            self.rows(hidden),
            router,
            *self._experts_or_packed(),
            top_k=self.config.num_experts_per_tok,
            activation=self.config.hidden_act,
            normalize=self.config.norm_topk_prob,
            dropout=self.config.expert_dropout_prob if self.training else 0.0,
        )
        return out, item_stats or stats

    def rows(self, hidden: Tensor) -> Tensor:
        """`hidden` as the router and the experts take it."""
        return hidden if self.int8 is not None else hidden.to(self.w1.dtype)

    def units(self, rows: Tensor, expert: int) -> Tensor:
        """The activated hidden units [R, I] of one expert over `rows` [R, H]; for those who observe them."""
        w1 = self.w1[expert]
        if self.int8 is not None:
            w1 = w1 * self.int8.w1_scale[expert, :, None]
        activated: Tensor = ACT2FN[self.config.hidden_act](self.rows(rows) @ w1.T + self.b1[expert])
        return activated

    def _experts_or_packed(self) -> ExpertWeights | tuple[PackedExperts | PackedInt8Experts]:
        if self.packed_int8 is not None:
            return (self.packed_int8,)
        uses_packed = self.packs and not self.training and not torch.is_grad_enabled()
        if uses_packed and self.w1.device.type == "cpu":
            return (self.packed.get(self._experts(), gated=False),)
        return self._experts()

    def _experts(self) -> ExpertWeights:
        return ExpertWeights(self.w1, self.b1, self.w2, self.b2)
