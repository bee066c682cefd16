"""`moe_ffn` on a CPU with packed weights: each expert in the layout that is fastest for its rows.

The weights are packed when a model is loaded, or by `PackedCache` at the first inference.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshard_kernels.moe_ffn.check import check_weights
from fewshard_kernels.moe_ffn.combine import add_and_norm
from fewshard_kernels.moe_ffn.layouts import (
    Layout,
    OneDnnLayout,
    PlainLayout,
    TransposedLayout,
    onednn_multiplies,
)
from fewshard_kernels.moe_ffn.measure import Tier, fastest_tiers
from fewshard_kernels.moe_ffn.options import ExpertWeights, MoeOptions, Routing
from fewshard_kernels.moe_ffn.routing import MoeStats, route


@dataclass(frozen=True, slots=True, eq=False)
class PackedExperts:
    """The experts of one layer, ready for a CPU: a snapshot, later changes to the weights do not reach it.

    `plain`: the weights it was made from, kept by reference; `tiers`: which layout multiplies how many rows
    of one expert, in ascending order of rows, the last one without a limit.
    """

    plain: ExpertWeights
    gated: bool
    tiers: tuple[Tier, ...]

    @property
    def num_bytes(self) -> int:
        """Memory the packed copies take beside the plain weights."""
        return sum(
            layout.num_bytes for layout in {id(tier.layout): tier.layout for tier in self.tiers}.values()
        )

    def layout_for(self, num_rows: int) -> Layout:
        return next(tier.layout for tier in self.tiers if num_rows <= tier.max_rows)

    def describe(self) -> str:
        """Which arithmetic runs, in words: `packed bfloat16 up to 8 rows an expert, then packed float32`."""
        limits = [f"{tier.layout.name} up to {tier.max_rows:.0f} rows an expert" for tier in self.tiers[:-1]]
        return ", then ".join([*limits, self.tiers[-1].layout.name])


def pack_experts(
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    *,
    gated: bool = False,
    compute_dtype: torch.dtype | None = None,
) -> PackedExperts:
    """Pack one layer's experts for `moe_ffn` on a CPU; shapes and dtypes as there. For inference alone.

    `compute_dtype` None: float32 weights are computed in float32; bfloat16 ones in bfloat16 or float32 and
    float16 ones in float16 or float32, whichever a measurement of some milliseconds finds faster here for the
    number of rows an expert gets. The result of the layer keeps the dtype of its rows whatever this is.
    Takes no copy of the weights where the plain ones are fastest, seldom more than two. Raises
    ValueError for weights that do not fit each other or are not on a CPU, or a `compute_dtype` that oneDNN
    cannot use here.
    """
    _check(ExpertWeights(w1, b1, w2, b2), gated, compute_dtype)
    weights = ExpertWeights(w1.detach(), _detach(b1), w2.detach(), _detach(b2))
    if compute_dtype is not None:
        only = Tier(float("inf"), OneDnnLayout(weights, gated, compute_dtype))
        return PackedExperts(weights, gated, (only,))
    with torch.inference_mode():
        tiers = fastest_tiers(_candidates(weights, gated), *w2.shape)
    return PackedExperts(weights, gated, tiers)


def _candidates(weights: ExpertWeights, gated: bool) -> list[Layout]:
    dtype = weights.w1.dtype
    candidates: list[Layout] = [TransposedLayout(weights, gated), OneDnnLayout(weights, gated, torch.float32)]
    if dtype == torch.float32:
        candidates.append(PlainLayout(weights, gated))
    elif onednn_multiplies(dtype):
        candidates.append(OneDnnLayout(weights, gated, dtype))
    return candidates


def _check(weights: ExpertWeights, gated: bool, compute_dtype: torch.dtype | None) -> None:
    check_weights(weights, gated)
    if weights.w1.device.type != "cpu":
        raise ValueError(f"experts are packed for a CPU alone, these are on {weights.w1.device}")
    if compute_dtype is not None and not onednn_multiplies(compute_dtype):
        raise ValueError(f"oneDNN does not multiply {compute_dtype} on this CPU; leave compute_dtype out")


def _detach(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


class PackedCache:
    """One layer's `PackedExperts`, made when first asked for and again when the weights have changed.

    A change is seen by a tensor's address, dtype and version counter; what bypasses the counter (writing
    through `.data`) must be followed by `clear`. A copy of a cache, by `copy` or `pickle`, is empty.
    """

    def __init__(self) -> None:
        self._key: object = None
        self._packed: PackedExperts | None = None

    def get(self, weights: ExpertWeights, gated: bool) -> PackedExperts:
        key = tuple(_identity(tensor) for tensor in weights if tensor is not None)
        if self._packed is None or key != self._key:
            self._packed = None  # frees the old copy before the new one is made
            self._packed, self._key = pack_experts(*weights, gated=gated), key
        return self._packed

    def clear(self) -> None:
        self._packed = None

    def __reduce__(self) -> tuple[type["PackedCache"], tuple[()]]:
        return PackedCache, ()


def _identity(tensor: Tensor) -> tuple[int, torch.dtype, int]:
    return tensor.data_ptr(), tensor.dtype, 0 if tensor.is_inference() else tensor._version


def moe_ffn_packed(
    x: Tensor, router: Tensor | Routing, packed: PackedExperts, options: MoeOptions
) -> tuple[Tensor, MoeStats]:
    """As `moe_ffn_cpu`, without gradients, each expert in the layout that is fastest for its rows."""
    probabilities, experts, stats = route(x, router, packed.plain.num_experts, options)
    groups = _groups(stats.expert_rows.tolist())
    if len(groups) == 1 and options.top_k == 1 and groups[0].stop == x.shape[0]:
        out = _products(x, groups, packed, options)
    elif not groups:
        out = x
    else:
        order = experts.flatten().argsort(stable=True)
        source = order if options.top_k == 1 else order // options.top_k
        slack = max(group.stop for group in groups) - order.numel()
        rows = x.index_select(0, F.pad(source, (0, slack)) if slack else source)
        grouped = _products(rows, groups, packed, options)
        out = torch.empty_like(grouped).index_copy_(0, order, grouped)
    y = _weighted_sum(out.view(*experts.shape, x.shape[1]), probabilities)
    return add_and_norm(y, options).to(x.dtype), stats


class _Group(NamedTuple):
    """`num_rows` rows from `start` on belong to `expert`; those up to `stop` are multiplied with it."""

    expert: int
    start: int
    num_rows: int
    stop: int


def _groups(counts: list[int]) -> list[_Group]:
    """One group for each expert that has rows; consecutive.

    oneDNN compiles a kernel for each new number of rows, at up to a millisecond. So the numbers are rounded
    up, to sixteen steps an octave: a group multiplies some of its neighbour's rows and drops the results.
    """
    groups, start = [], 0
    for expert, count in enumerate(counts):
        if count:
            step = 1 << max(0, count.bit_length() - 5)
            groups.append(_Group(expert, start, count, start - count // -step * step))
            start += count
    return groups


def _products(rows: Tensor, groups: list[_Group], packed: PackedExperts, options: MoeOptions) -> Tensor:
    """Each group's expert over its rows, one after the other; experts that are masked out give zeros."""
    present = None if options.expert_mask is None else options.expert_mask.tolist()
    outputs = []
    for expert, start, num_rows, stop in groups:
        if present is not None and not present[expert]:
            outputs.append(rows.new_zeros(num_rows, rows.shape[1]))
            continue
        layout = packed.layout_for(num_rows)
        out = layout.expert(rows[start:stop].to(layout.dtype), expert, options.activation)
        outputs.append(out[:num_rows])
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _weighted_sum(out: Tensor, probabilities: Tensor) -> Tensor:
    """sum over k of out [T, k, H] * probabilities [T, k], in fp32, without a product of that size."""
    if out.shape[1] == 1:
        return out.squeeze(1) * probabilities
    y = out[:, 0] * probabilities[:, :1]
    for choice in range(1, out.shape[1]):
        y.addcmul_(out[:, choice], probabilities[:, choice, None])
    return y
