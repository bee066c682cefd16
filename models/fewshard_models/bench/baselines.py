"""The implementations to compare: our op and its alternatives, all with the same weights and routing.

A builder makes a peer from a `Problem`; the peer is then called with the number of the call. Every peer
receives the routing and computes none. External peers are imported from their authors' source trees at paths
that the caller gives, without copies of their code; they need a GPU.
"""

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHExperts

from fewshard_core.errors import FewshardError
from fewshard_kernels import ExpertWeights, force_path, moe_ffn
from fewshard_kernels.moe_ffn.options import activate
from fewshard_models.bench.problem import Problem

OURS = "fewshard"
REFERENCE = "fewshard reference"
TRANSFORMERS = ("eager", "batched_mm", "grouped_mm")
PIPELINE = "F.grouped_mm pipeline"
DENSE = "dense FFN"
MAX_GATHERED_BYTES = 2 * 2**30

Runner = Callable[[int], Tensor]
Builder = Callable[[Problem], Runner]


class Skipped(FewshardError):
    """A peer cannot take part in a point; the text gives the reason."""


def transformers_name(implementation: str) -> str:
    """Name in the report of one of transformers' experts implementations."""
    return f"transformers {implementation}"


def builders() -> dict[str, Builder]:
    """The peers that need only installed packages, ours first."""
    return {
        OURS: _ours,
        REFERENCE: _reference,
        **{transformers_name(name): _transformers_builder(name) for name in TRANSFORMERS},
        PIPELINE: _pipeline,
        DENSE: _dense,
    }


def _ours(problem: Problem) -> Runner:
    """Our op as it is served: packed on a CPU, fused on a GPU."""
    point = problem.point
    on_cpu = problem.x.device.type == "cpu"
    experts: Sequence[tuple[Any, ...]] = (
        [(packed,) for packed in problem.layer.packed] if on_cpu else problem.layer.copies
    )

    def run(index: int) -> Tensor:
        y, _ = moe_ffn(
            problem.x,
            problem.routing(index),
            *experts[problem.copy(index)],
            activation=point.activation,
            gated=point.shape.gated,
        )
        return y

    return run


def _reference(problem: Problem) -> Runner:
    point, copies = problem.point, problem.layer.copies

    def run(index: int) -> Tensor:
        weights, routing = copies[problem.copy(index)], problem.routing(index)
        with force_path("reference"):
            y, _ = moe_ffn(problem.x, routing, *weights, activation=point.activation, gated=point.shape.gated)
        return y

    return run


def _transformers_builder(implementation: str) -> Builder:
    def build(problem: Problem) -> Runner:
        if implementation == "batched_mm":
            _refuse_large_gather(problem)
        modules = [_experts_module(problem, weights, implementation) for weights in problem.layer.copies]

        def run(index: int) -> Tensor:
            weights, experts = problem.routing(index)
            y: Tensor = modules[problem.copy(index)](problem.x, experts, weights)
            return y

        return run

    return build


def _experts_module(problem: Problem, weights: ExpertWeights, implementation: str) -> nn.Module:
    """An experts layer of transformers around our tensors: Mixtral's if gated, else Nemotron-H's."""
    point, gated = problem.point, problem.point.shape.gated
    config = SimpleNamespace(
        _experts_implementation=implementation,
        num_local_experts=point.num_experts,
        n_routed_experts=point.num_experts,
        hidden_size=point.shape.hidden,
        intermediate_size=point.shape.width,
        moe_intermediate_size=point.shape.width,
        moe_latent_size=None,
        hidden_act=point.activation,
        mlp_hidden_act=point.activation,
    )
    with torch.device("meta"):
        module: nn.Module = MixtralExperts(config) if gated else NemotronHExperts(config)
    first = nn.Parameter(weights.w1, requires_grad=False)
    setattr(module, "gate_up_proj" if gated else "up_proj", first)
    module.down_proj = nn.Parameter(weights.w2, requires_grad=False)
    return module.eval()


def _refuse_large_gather(problem: Problem) -> None:
    point = problem.point
    gathered = point.num_rows * point.expert_numbers * problem.x.element_size()
    if gathered > MAX_GATHERED_BYTES:
        limit = f"the benchmark allows {MAX_GATHERED_BYTES / 2**30:.0f} GiB"
        raise Skipped(f"copies an expert for each row, {gathered / 2**30:.1f} GiB here; {limit}")


def _pipeline(problem: Problem) -> Runner:
    """A minimal layer around `F.grouped_mm`: sort, gather, product, activation, product, combine."""
    if not hasattr(F, "grouped_mm"):
        raise Skipped(f"torch {torch.__version__} has no F.grouped_mm")
    point, x = problem.point, problem.x
    transposed = [(each.w1.transpose(1, 2), each.w2.transpose(1, 2)) for each in problem.layer.copies]
    names = torch.arange(point.num_experts, device=x.device)

    def run(index: int) -> Tensor:
        (up, down), (weights, experts) = transposed[problem.copy(index)], problem.routing(index)
        order = experts.flatten().argsort()
        ends = torch.searchsorted(experts.flatten()[order], names, right=True).int()
        projected = F.grouped_mm(x[order // point.top_k], up, offs=ends)
        hidden = activate(projected, point.activation, point.shape.gated)
        grouped = F.grouped_mm(hidden, down, offs=ends)
        out = torch.empty_like(grouped).index_copy_(0, order, grouped).view(*experts.shape, x.shape[1])
        return (out * weights[..., None]).sum(dim=1).to(x.dtype)

    return run


def _dense(problem: Problem) -> Runner:
    """A dense layer as wide as the experts of one token: the same MACs, computed densely."""
    point, x, layers = problem.point, problem.x, problem.layer.dense(problem.point.top_k)

    def run(index: int) -> Tensor:
        up, down = layers[index % len(layers)]
        return F.linear(activate(F.linear(x, up), point.activation, point.shape.gated), down)

    return run


def activation_alone(problem: Problem) -> Runner:
    """The activation as a separate op over all hidden units: not a peer, but a measure of its cost."""
    point = problem.point
    width = point.shape.width * (2 if point.shape.gated else 1)
    projected = torch.randn(point.num_rows, width, device=problem.x.device).to(problem.x.dtype)
    return lambda _index: activate(projected, point.activation, point.shape.gated)


_SCATTERMOE, _VLLM = "scattermoe", "vllm"


def external_builders(paths: Mapping[str, Path]) -> dict[str, Builder]:
    """A builder for each named source tree. Raises ValueError for an unknown name."""
    unknown = sorted(set(paths) - set(_BUILDERS))
    if unknown:
        raise ValueError(f"no peer {', '.join(unknown)}; there are {', '.join(_BUILDERS)}")
    return {name: _with_path(_BUILDERS[name], path) for name, path in paths.items()}


def _with_path(build: Callable[[Problem, Path], Runner], path: Path) -> Builder:
    return lambda problem: build(problem, path)


def _module(name: str, path: Path, problem: Problem) -> Any:
    """The peer's module, imported with `path` (the folder of its package) first on the search path."""
    if problem.x.device.type != "cuda":
        raise Skipped("needs a GPU")
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Skipped(f"cannot be imported from {path}: {error}") from error


def _scattermoe(problem: Problem, path: Path) -> Runner:
    """ScatterMoE's own MLP (Tan et al. 2024, arXiv 2403.08245)."""
    module, shape, point = _module("scattermoe.mlp", path, problem), problem.point.shape, problem.point
    kind = module.GLUMLP if shape.gated else module.MLP
    activation = nn.SiLU() if shape.gated else nn.GELU()
    layers = []
    for w1, _, w2, _ in problem.layer.copies:
        layer = kind(shape.hidden, shape.width, point.num_experts, point.top_k, activation=activation)
        layer.experts.weight = nn.Parameter(_gate_last(w1) if shape.gated else w1, requires_grad=False)
        layer.output_experts.weight = nn.Parameter(w2, requires_grad=False)
        layers.append(layer.to(problem.x.device))

    def run(index: int) -> Tensor:
        weights, experts = problem.routing(index)
        y: Tensor = layers[problem.copy(index)](problem.x, weights.to(problem.x.dtype), experts)
        return y

    return run


def _gate_last(w1: Tensor) -> Tensor:
    """Swap the halves: ScatterMoE stores the up projection before the gate."""
    gate, up = w1.chunk(2, dim=1)
    return torch.cat([up, gate], dim=1)


def _vllm(problem: Problem, path: Path) -> Runner:
    """vLLM's `fused_experts`, sorting included."""
    module, point = _module("vllm.model_executor.layers.fused_moe", path, problem), problem.point
    activation = point.activation if point.shape.gated else f"{point.activation}_no_mul"

    def run(index: int) -> Tensor:
        w1, _, w2, _ = problem.layer.copies[problem.copy(index)]
        weights, experts = problem.routing(index)
        y: Tensor = module.fused_experts(problem.x, w1, w2, weights, experts.int(), activation=activation)
        return y

    return run


_BUILDERS: dict[str, Callable[[Problem, Path], Runner]] = {_SCATTERMOE: _scattermoe, _VLLM: _vllm}
