"""Experts of 8-bit weights on a CPU: rows are coded once, sorted by expert, and multiplied as whole numbers.

`moe_ffn` calls it where it is given `Int8Experts`. It supports neither gates, dropout nor gradients.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshard_kernels.int8 import Int8Product, Quantisation
from fewshard_kernels.moe_ffn.batch_plan import rounded
from fewshard_kernels.moe_ffn.options import MoeOptions, Routing, add_and_norm
from fewshard_kernels.moe_ffn.routing import MoeStats, route


@dataclass(frozen=True, slots=True, eq=False)
class Int8Experts:
    """The experts of one layer, coded in 8 bits.

    w1, w2: int8 [E, I, H] and [E, H, I].
    w1_scale, w2_scale: fp32 [E, I] and [E, H], for each output of each expert.
    b1, b2: fp32 [E, I] and [E, H].
    rows: the code of the layer's input.
    units: for each expert, the code of its activated hidden units.
    """

    w1: Tensor
    w1_scale: Tensor
    b1: Tensor
    w2: Tensor
    w2_scale: Tensor
    b2: Tensor
    rows: Quantisation
    units: tuple[Quantisation, ...]

    @property
    def num_experts(self) -> int:
        return len(self.w1)


class PackedInt8Experts:
    """`Int8Experts` in oneDNN's layout, for one activation; changes to the weights do not reach it.

    out: dtype of the experts' results before they are summed.
    """

    def __init__(self, experts: Int8Experts, activation: str, out: torch.dtype = torch.float32) -> None:
        self.num_experts, self.rows, self.out = experts.num_experts, experts.rows, out
        self.hidden, self.activation = experts.w1.shape[2], activation
        first = zip(experts.w1, experts.w1_scale, experts.b1, experts.units, strict=True)
        second = zip(experts.w2, experts.w2_scale, experts.b2, experts.units, strict=True)
        self._up = [Int8Product(w, scale, b, experts.rows, units, activation) for w, scale, b, units in first]
        self._down = [Int8Product(w, scale, b, units, out) for w, scale, b, units in second]

    def expert(self, rows: Tensor, expert: int) -> Tensor:
        """One expert over its coded `rows` uint8 [R, H], R > 0; [R, H] without the router's weight."""
        return self._down[expert](self._up[expert](rows))


def moe_ffn_int8(
    x: Tensor, router: Tensor | Routing, packed: PackedInt8Experts, options: MoeOptions
) -> tuple[Tensor, MoeStats]:
    """`moe_ffn` with 8-bit experts; `x` [T, H] in fp32, bf16 or fp16. Arguments are checked already."""
    probabilities, experts, stats = route(x, router, packed.num_experts, options)
    present = None if options.expert_mask is None else options.expert_mask.tolist()
    order = experts.flatten().argsort(stable=True)
    grouped = packed.rows.encode(x).index_select(0, order if options.top_k == 1 else order // options.top_k)
    outputs = [
        _padded(rows, expert, packed) if present is None or present[expert] else rows.new_zeros(rows.shape)
        for expert, rows in enumerate(grouped.split(stats.expert_rows.tolist()))
        if len(rows)
    ]
    sorted_out = torch.cat([each.to(packed.out) for each in outputs]) if outputs else grouped.to(packed.out)
    out = torch.empty_like(sorted_out).index_copy_(0, order, sorted_out).view(*experts.shape, x.shape[1])
    y = out[:, 0] * probabilities if options.top_k == 1 else (out * probabilities[..., None]).sum(dim=1)
    return add_and_norm(y.float(), options).to(x.dtype), stats


def _padded(rows: Tensor, expert: int, packed: PackedInt8Experts) -> Tensor:
    """One expert over its rows, with spare ones: oneDNN compiles a product for each number of rows."""
    spare = rounded(len(rows)) - len(rows)
    if not spare:
        return packed.expert(rows, expert)
    return packed.expert(torch.cat([rows, rows.new_zeros(spare, rows.shape[1])]), expert)[: len(rows)]


def check_int8(x: Tensor, packed: PackedInt8Experts, activation: str, gated: bool, dropout: float) -> None:
    """Raise ValueError unless the call is one that packed 8-bit experts can compute."""
    if gated or dropout or activation != packed.activation:
        raise ValueError(
            f"8-bit experts were packed for {packed.activation} without a gate; they compute neither another "
            "activation, gates nor dropout"
        )
    if x.ndim != 2 or x.shape[1] != packed.hidden or not x.is_floating_point() or x.device.type != "cpu":
        raise ValueError(
            f"x must be [T, {packed.hidden}], fractions on a CPU, got {x.dtype} {list(x.shape)} on {x.device}"
        )
    if x.requires_grad and torch.is_grad_enabled():
        raise ValueError("8-bit experts have no gradient; call them under torch.inference_mode()")
