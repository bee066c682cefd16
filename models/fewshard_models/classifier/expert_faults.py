"""Finds where a network with experts stops computing finite numbers. `PaddedText` asks, for one text."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fewshard_models.classifier.routed_experts import ExpertLayer


def where_not_finite(layers: Sequence[ExpertLayer], run: Callable[[], object]) -> str:
    """Run a pass and return where numbers stop to be finite first, as "in the router of layer 3 (NAME)"."""
    found: list[str] = []
    hooks = []
    for number, layer in enumerate(layers):
        where = f"layer {number} ({layer.name})"
        if layer.router is not None:
            hooks.append(layer.router.register_forward_hook(partial(_look_at_router, found, where)))
        if layer.has_interface:
            hooks.append(layer.module.register_forward_hook(partial(_look_at_experts, found, where)))
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else "after the last layer with experts"


def _look_at_router(found: list[str], where: str, router: nn.Module, inputs: Any, output: Any) -> None:
    if not _is_finite(inputs[0]):
        found.append(f"before the router of {where}")
    elif not all(_is_finite(each) for each in output if isinstance(each, Tensor)):
        found.append(f"in the router of {where}")


def _look_at_experts(found: list[str], where: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
    if not _is_finite(inputs[0]) or _is_finite(output):
        return
    is_bad = ~output.isfinite().all(dim=1)
    suspects = set(inputs[1][is_bad].flatten().tolist()) - set(inputs[1][~is_bad].flatten().tolist())
    told = f", of which {', '.join(map(str, sorted(suspects)))} answered no other token" if suspects else ""
    found.append(f"in the experts of {where}{told}")


def _is_finite(numbers: Tensor) -> bool:
    return bool(torch.isfinite(numbers).all())
