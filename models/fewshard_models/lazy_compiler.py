"""Leaves torch's compiler unloaded until a network is compiled.

transformers imports it for decorators, with torch's tensors over several machines, and torch itself for the
initial weights of a network that has no memory yet. Together they take half of the time to import, and 150 MB
(docs/log.md). The models' process of a server and the loading of checkpoints use this.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

COMPILER = "torch._dynamo"
_DRAWS = ("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_")


def import_networks() -> None:
    """Import the base class of transformers' networks without the compiler.

    For processes that only serve: afterwards, transformers takes it that torch has no `torch.distributed`.
    Does nothing where the compiler is loaded already.
    """
    if COMPILER in sys.modules:
        return
    sys.modules[COMPILER] = _NoCompiler(COMPILER)
    try:
        with ExitStack() as stack:
            stack.enter_context(_replaced(torch.compiler, "disable", _unchanged))
            stack.enter_context(_replaced(torch.distributed, "is_available", lambda: False))
            import transformers.modeling_utils  # noqa: F401
    finally:
        del sys.modules[COMPILER]  # whoever compiles gets the real one


class _NoCompiler(ModuleType):
    """Its decorators leave functions as they are: they matter to compiled networks alone."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _unchanged


def _unchanged(function: Any = None, *_: Any, **__: Any) -> Any:
    return function if callable(function) else _unchanged


@contextmanager
def no_draws_on_meta() -> Iterator[None]:
    """Draw no initial weights on the device "meta", where they have no numbers."""
    with ExitStack() as stack:
        for name in _DRAWS:
            drawing = _not_on_meta(getattr(torch.nn.init, name))
            stack.enter_context(_replaced(torch.nn.init, name, drawing))
        yield


def _not_on_meta(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def draw_or_not(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return tensor if tensor.is_meta else draw(tensor, *args, **kwargs)

    return draw_or_not


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)
