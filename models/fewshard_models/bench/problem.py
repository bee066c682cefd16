"""Tensors of one benchmark point: copies of the weights, rows, routings, and the result in float64."""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from fewshard_kernels import ExpertWeights, PackedExperts, Routing, pack_experts
from fewshard_kernels.moe_ffn.options import activate
from fewshard_models.bench.grid import Point, Shape
from fewshard_models.devices import storage_dtype

MAX_CHECKED_ROWS = 256


class Layer:
    """The experts of one layer in `num_copies` copies, so that calls miss the cache."""

    def __init__(
        self, shape: Shape, dtype: torch.dtype, num_experts: int, num_copies: int, device: str
    ) -> None:
        self.shape, self.num_experts, self.num_copies = shape, num_experts, num_copies
        generator = torch.Generator().manual_seed(0)
        rows = shape.width * (2 if shape.gated else 1)
        w1 = torch.randn(num_experts, rows, shape.hidden, generator=generator) * shape.hidden**-0.5
        w2 = torch.randn(num_experts, shape.hidden, shape.width, generator=generator) * shape.width**-0.5
        first = ExpertWeights(w1.to(device, dtype), None, w2.to(device, dtype), None)
        clones = [
            ExpertWeights(first.w1.clone(), None, first.w2.clone(), None) for _ in range(num_copies - 1)
        ]
        self.copies = [first, *clones]

    @cached_property
    def packed(self) -> list[PackedExperts]:
        """Each copy as it is served on a CPU, packed."""
        return [pack_experts(*weights, gated=self.shape.gated) for weights in self.copies]

    def dense(self, top_k: int) -> list[tuple[Tensor, Tensor]]:
        """Dense layers as wide as `top_k` experts together, as views of the same memory."""
        hidden, width = self.shape.hidden, self.shape.width
        return [
            (up.reshape(-1, hidden), down.reshape(hidden, top_k * width))
            for weights in self.copies
            for up, down in zip(weights.w1.split(top_k), weights.w2.split(top_k), strict=True)
            if len(up) == top_k
        ]


@dataclass(frozen=True, eq=False)
class Problem:
    """One point with its tensors; call `index` uses weights `copy(index)` and routing `routing(index)`."""

    point: Point
    layer: Layer
    x: Tensor
    routings: list[Routing]

    def copy(self, index: int) -> int:
        return index % self.layer.num_copies

    def routing(self, index: int) -> Routing:
        """The routing of a call: the same load on other experts, after each use of all copies."""
        return self.routings[index // self.layer.num_copies % len(self.routings)]

    @cached_property
    def checked_rows(self) -> Tensor:
        """Up to 256 evenly spaced rows whose results are compared with float64."""
        step = -(-self.point.num_tokens // MAX_CHECKED_ROWS)
        return torch.arange(0, self.point.num_tokens, step, device=self.x.device)

    @cached_property
    def expected(self) -> Tensor:
        """The layer's float64 result of call 0 for the checked rows."""
        rows, (weights, experts) = self.x[self.checked_rows].double(), self.routings[0]
        kept, chosen = weights[self.checked_rows].double(), experts[self.checked_rows]
        w1, _, w2, _ = self.layer.copies[0]
        y = torch.zeros_like(rows)
        for expert in chosen.unique().tolist():
            tokens, choices = torch.where(chosen == expert)
            out = self._ffn(rows[tokens], w1[expert], w2[expert])
            y.index_add_(0, tokens, out * kept[tokens, choices, None])
        return y

    @cached_property
    def expected_dense(self) -> Tensor:
        """The dense layer's float64 result of call 0 for the checked rows."""
        return self._ffn(self.x[self.checked_rows].double(), *self.layer.dense(self.point.top_k)[0])

    def _ffn(self, rows: Tensor, up: Tensor, down: Tensor) -> Tensor:
        projected = F.linear(rows, up.double())
        return F.linear(activate(projected, self.point.activation, self.point.shape.gated), down.double())

    @cached_property
    def num_hit_experts(self) -> int:
        return int(self.routings[0].experts.unique().numel())


def make_layer(point: Point, num_copies: int, device: str) -> Layer:
    """The layer of a point; the same for all points that differ only in tokens, top-k or routing."""
    return Layer(point.shape, storage_dtype(point.dtype), point.num_experts, num_copies, device)


def make_problem(point: Point, layer: Layer, device: str) -> Problem:
    """Rows of unit variance, and one routing for each cyclic renaming of the experts."""
    generator = torch.Generator().manual_seed(point.num_tokens)
    x = torch.randn(point.num_tokens, point.shape.hidden, generator=generator)
    experts, weights = _draw(point, generator)
    renamed = [(experts + shift) % point.num_experts for shift in range(point.num_experts)]
    routings = [Routing(weights.to(device), each.to(device)) for each in renamed]
    return Problem(point, layer, x.to(device, storage_dtype(point.dtype)), routings)


def _draw(point: Point, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Distinct experts per row [T, k], and fp32 weights that sum to one as in Mixtral."""
    size = (point.num_tokens, point.top_k)
    weights = torch.randn(size, generator=generator).softmax(dim=-1)
    if point.routing == "one-hot":
        return torch.arange(point.top_k).expand(size).contiguous(), weights
    ranks = torch.arange(1, point.num_experts + 1, dtype=torch.float32)
    popularity = torch.ones_like(ranks) if point.routing == "uniform" else 1 / ranks
    experts = torch.multinomial(
        popularity.expand(point.num_tokens, -1), point.top_k, replacement=False, generator=generator
    )
    return experts, weights
