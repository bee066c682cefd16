"""Peers that are imported from their authors' source trees, where the caller names a path; nothing is copied.

They run on a GPU alone.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewshard_models.bench.peers import Builder, Runner, Skipped
from fewshard_models.bench.problem import Problem

_SCATTERMOE, _VLLM = "scattermoe", "vllm"


def external_builders(paths: Mapping[str, Path]) -> dict[str, Builder]:
    """A builder for each named source tree. ValueError for a name that is not known."""
    unknown = sorted(set(paths) - set(_BUILDERS))
    if unknown:
        raise ValueError(f"no peer {', '.join(unknown)}; there are {', '.join(_BUILDERS)}")
    return {name: _with_path(_BUILDERS[name], path) for name, path in paths.items()}


def _with_path(build: Callable[[Problem, Path], Runner], path: Path) -> Builder:
    return lambda problem: build(problem, path)


def _module(name: str, path: Path, problem: Problem) -> Any:
    """The peer's module, with `path` (the folder its package lies in) in front of the search path."""
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
    """ScatterMoE holds the up projection first and the gate behind it."""
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
