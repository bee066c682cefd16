"""`moe_ffn` on a CPU with packed weights: computes each expert in the layout that is fastest for its rows.

Weights are packed when a model is loaded, or by `PackedCache` at the first inference.
"""

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from fewshard_kernels.moe_ffn.batch_plan import Cost, Segment, plan
from fewshard_kernels.moe_ffn.check import check_weights
from fewshard_kernels.moe_ffn.layout_timing import Choice, Tier, choose
from fewshard_kernels.moe_ffn.layouts import (
    BatchedLayout,
    Layout,
    OneDnnLayout,
    PlainLayout,
    TransposedLayout,
)
from fewshard_kernels.moe_ffn.options import ExpertWeights, MoeOptions, Routing, add_and_norm
from fewshard_kernels.moe_ffn.routing import MoeStats, route
from fewshard_kernels.onednn import onednn_multiplies


@dataclass(frozen=True, slots=True, eq=False)
class PackedExperts:
    """The experts of one layer, packed for a CPU. Later changes to the weights do not reach it.

    plain: the original weights, by reference.
    gated: whether the experts are gated.
    choice: the layout for each number of rows of one expert alone, and for neighbours together.
    """

    plain: ExpertWeights
    gated: bool
    choice: Choice

    @property
    def num_bytes(self) -> int:
        """Bytes of the packed copies, without the plain weights."""
        layouts = {id(tier.layout): tier.layout for tier in self.choice.tiers}
        return sum(layout.num_bytes for layout in layouts.values())

    def layout_for(self, num_rows: int) -> Layout:
        """The layout for an expert that is computed alone with `num_rows` rows."""
        return next(tier.layout for tier in self.choice.tiers if num_rows <= tier.max_rows)

    def describe(self) -> str:
        """The chosen layouts as text: `packed bfloat16 up to 8 rows an expert, then packed float32`."""
        tiers, batched = self.choice.tiers, self.choice.batched
        limits = [f"{tier.layout.name} up to {tier.max_rows:.0f} rows an expert" for tier in tiers[:-1]]
        alone = ", then ".join([*limits, tiers[-1].layout.name])
        return alone if batched is None else f"{batched.name} for neighbours; alone, {alone}"


def pack_experts(
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    *,
    gated: bool = False,
    compute_dtype: torch.dtype | None = None,
    copies: bool = True,
) -> PackedExperts:
    """Pack one layer's experts for `moe_ffn` on a CPU; shapes and dtypes as there. For inference only.

    `compute_dtype`: None chooses by a measurement of some milliseconds, for each number of rows per expert.
    float32 weights are computed in float32, bfloat16 ones in bfloat16 or float32, and float16 ones in float16
    or float32. The result of the layer has the dtype of its rows in every case.
    `copies`: whether layouts that copy the weights may be used. True makes no copy where the plain weights
    are fastest, and seldom more than two. With False, the fastest layout without a copy is used; it is
    measured once for any number of experts.
    Raises ValueError for weights that do not fit each other or are not on a CPU, or for a `compute_dtype`
    that oneDNN does not support here.

    >>> from fewshard_kernels import moe_ffn
    >>> packed = pack_experts(torch.ones(2, 8, 4), None, torch.ones(2, 4, 8), None)
    >>> y, _ = moe_ffn(torch.ones(3, 4), torch.ones(2, 4), packed)
    >>> y.shape
    torch.Size([3, 4])
    """
    _check(ExpertWeights(w1, b1, w2, b2), gated, compute_dtype)
    weights = ExpertWeights(w1.detach(), _detach(b1), w2.detach(), _detach(b2))
    if compute_dtype is not None:
        only = Tier(float("inf"), OneDnnLayout(weights, gated, compute_dtype))
        return PackedExperts(weights, gated, Choice((only,), Cost((1, 2), (1.0, 1.0)), None, None))
    with torch.inference_mode():
        candidates = _candidates(weights, gated) if copies else _without_copies(weights, gated)
        choice = choose(candidates, *w2.shape, for_any_number=not copies)
        return PackedExperts(weights, gated, choice)


def _candidates(weights: ExpertWeights, gated: bool) -> list[Layout]:
    dtype = weights.w1.dtype
    candidates: list[Layout] = [TransposedLayout(weights, gated), OneDnnLayout(weights, gated, torch.float32)]
    if dtype == torch.float32:
        candidates.append(PlainLayout(weights, gated))
    elif onednn_multiplies(dtype):
        candidates.append(OneDnnLayout(weights, gated, dtype))
        candidates.append(BatchedLayout(weights, gated))
    return candidates


def _without_copies(weights: ExpertWeights, gated: bool) -> list[Layout]:
    candidates: list[Layout] = [PlainLayout(weights, gated)]
    if weights.w1.dtype == torch.float32:
        candidates.append(TransposedLayout(weights, gated))
    elif onednn_multiplies(weights.w1.dtype):
        candidates.append(BatchedLayout(weights, gated))
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
    """Builds one layer's `PackedExperts` on first use, and again after the weights have changed.

    A change is detected by a tensor's address, dtype and version counter. Call `clear` after a write that
    bypasses the counter (through `.data`). A copy of a cache, by `copy` or `pickle`, is empty.
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
    """Same result as `moe_ffn_cpu`, without gradients; each expert uses the fastest layout for its rows."""
    probabilities, experts, stats = route(x, router, packed.plain.num_experts, options)
    counts = stats.expert_rows.tolist()
    segments = plan(_present(counts, options), packed.choice.alone, packed.choice.together)
    if len(segments) == 1 and _takes_all(segments[0], counts, x, options):
        out = _segment(x, segments[0], packed, options.activation)
    else:
        out = _grouped(x, experts, counts, segments, packed, options)
    if options.top_k == 1 and options.residual is None:
        # Multiplied in fp32 and rounded once, in one pass.
        return torch.mul(out, probabilities, out=torch.empty_like(x)), stats
    y = _weighted_sum(out.view(*experts.shape, x.shape[1]), probabilities)
    return add_and_norm(y, options).to(x.dtype), stats


def _present(counts: list[int], options: MoeOptions) -> list[int]:
    """`counts`, with zero for the experts that are masked out."""
    if options.expert_mask is None:
        return counts
    return [count * here for count, here in zip(counts, options.expert_mask.tolist(), strict=True)]


def _takes_all(segment: Segment, counts: list[int], x: Tensor, options: MoeOptions) -> bool:
    """Whether one expert takes all rows in their present order, without sorting or padding."""
    return options.top_k == 1 and counts[segment.first] == segment.num_rows == x.shape[0]


def _grouped(
    x: Tensor,
    experts: Tensor,
    counts: list[int],
    segments: list[Segment],
    packed: PackedExperts,
    options: MoeOptions,
) -> Tensor:
    """The expert output of each choice, [T * k, H]; zeros where the expert is masked out.

    Rows of a segment are contiguous. Each expert's rows are padded to the segment's row count, and the
    outputs of padding rows are never read.
    """
    grouped, order = experts.flatten().sort(stable=True)
    moves, num_places = _moves(segments, counts)
    places = torch.tensor(moves).index_select(0, grouped).add_(torch.arange(len(order)))
    if options.expert_mask is not None:
        # One extra place, for the choices whose expert is masked out.
        places = torch.where(options.expert_mask[grouped], places, num_places)
    source = torch.zeros(num_places + 1, dtype=torch.int64)
    source.scatter_(0, places, order if options.top_k == 1 else order // options.top_k)
    every = _products(x.index_select(0, source[:num_places]), segments, packed, options)
    return every.index_select(0, torch.empty_like(places).scatter_(0, order, places))


def _moves(segments: list[Segment], counts: list[int]) -> tuple[list[int], int]:
    """Offset from each expert's first row in sorted order to its place in the segments, and the number of
    places in all segments."""
    before = list(accumulate(counts, initial=0))
    moves, place = [0] * len(counts), 0
    for segment in segments:
        for expert in range(segment.first, segment.first + segment.num_experts):
            moves[expert] = place - before[expert]
            place += segment.num_rows
    return moves, place


def _products(rows: Tensor, segments: list[Segment], packed: PackedExperts, options: MoeOptions) -> Tensor:
    """The outputs of all segments, one after the other, followed by a row of zeros."""
    every = rows.new_empty(rows.shape[0] + 1, rows.shape[1])
    every[-1] = 0
    start = 0
    for segment in segments:
        stop = start + segment.num_experts * segment.num_rows
        out = _segment(rows[start:stop], segment, packed, options.activation)
        every[start:stop].view(out.shape).copy_(out)
        start = stop
    return every


def _segment(rows: Tensor, segment: Segment, packed: PackedExperts, activation: str) -> Tensor:
    """[R, H] for one expert, [n, R / n, H] for several."""
    if segment.num_experts == 1:
        layout = packed.layout_for(segment.num_rows)
        return layout.expert(rows.to(layout.dtype), segment.first, activation)
    assert packed.choice.batched is not None
    each = rows.view(segment.num_experts, segment.num_rows, rows.shape[1])
    return packed.choice.batched.experts(each, segment.first, activation)


def _weighted_sum(out: Tensor, probabilities: Tensor) -> Tensor:
    """sum over k of out [T, k, H] * probabilities [T, k], in fp32, without an intermediate [T, k, H]."""
    if out.shape[1] == 1:
        return out.squeeze(1) * probabilities
    y = out[:, 0] * probabilities[:, :1]
    for choice in range(1, out.shape[1]):
        y.addcmul_(out[:, choice], probabilities[:, choice, None])
    return y
