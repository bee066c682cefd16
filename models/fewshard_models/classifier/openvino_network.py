"""Runs a network of transformers through OpenVINO on a CPU, where that is faster and answers the same.

Needs the extra `openvino`. The network is traced once, with its weights in fp32, and compiled for the number
format and the threads it is served with. A trace keeps whatever Python computed from the traced input, so a
network whose code depends on lengths may answer other inputs wrongly; `compile_network` cannot see that, and
`engines.choose` compares the answers.
"""

import importlib
import importlib.util
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewshard_models.errors import CheckpointError

PRECISIONS = {"fp32": "f32", "bf16": "bf16"}
"""OpenVINO's name for each number format that it is asked to multiply in."""


@dataclass(frozen=True, slots=True)
class Output:
    """What a network of transformers returns, as far as a classifier reads it."""

    logits: Tensor


def is_installed() -> bool:
    """Return whether the extra `openvino` is there, without importing it."""
    return importlib.util.find_spec("openvino") is not None


class OpenVinoNetwork:
    """A compiled network; called like the network of transformers that it was made of."""

    def __init__(self, compiled: Any, names: tuple[str, ...]) -> None:
        self._request = compiled.create_infer_request()
        self._names = names
        self._lock = threading.Lock()

    def __call__(self, **inputs: Tensor) -> Output:
        """`inputs`: the tensors by name that it was compiled with, of any batch size and length."""
        arrays = [_array(inputs[name]) for name in self._names]
        with self._lock:
            found: np.ndarray = self._request.infer(arrays, share_inputs=True)[0]
            return Output(torch.from_numpy(found.copy()))


def compile_network(
    network: nn.Module, example: dict[str, Tensor], dtype: str, num_threads: int
) -> OpenVinoNetwork:
    """Trace and compile a network.

    network: in fp32, on the CPU, in evaluation mode.
    example: the tensors by name of an ordinary batch; of two or more items, so that their number is not
        taken for a constant.
    dtype: the number format of its products; one of `PRECISIONS`.

    Raises CheckpointError for a network that cannot be traced or that OpenVINO cannot compile.
    """
    openvino = _import_quietly()
    names = tuple(example)
    try:
        with warnings.catch_warnings(), _quiet(), torch.inference_mode():
            warnings.simplefilter("ignore")  # about each Python number that the trace keeps
            model = openvino.convert_model(_Logits(network, names), example_input=tuple(example.values()))
        compiled = openvino.Core().compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],  # left out, it is bf16 where the CPU has it
                "INFERENCE_NUM_THREADS": num_threads,
                "NUM_STREAMS": 1,
                "PERFORMANCE_HINT": "LATENCY",
                "ENABLE_CPU_PINNING": False,  # two processes would pin to the same core
            },
        )
    except Exception as error:  # tracing runs the network's own code, which may raise anything
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"OpenVINO cannot compile {type(network).__name__}: {first_line}") from error
    return OpenVinoNetwork(compiled, names)


def _import_quietly() -> Any:
    """Import OpenVINO without its telemetry.

    The import alone would write an identifier below the home directory and report to a server (2026.4).
    """
    hidden: Any = None
    sys.modules.setdefault("openvino_telemetry", hidden)  # OpenVINO then does without
    return importlib.import_module("openvino")


class _Logits(nn.Module):
    """A network that takes its inputs in order and returns fp32 logits alone."""

    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *values: Tensor) -> Tensor:
        logits: Tensor = self.network(**dict(zip(self.names, values, strict=True))).logits
        return logits.float()


def _array(tensor: Tensor) -> np.ndarray:
    array: np.ndarray = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).contiguous().numpy()
    return array


@contextmanager
def _quiet() -> Iterator[None]:
    """torch.jit says once for each trace that it is old; OpenVINO's converter needs it."""
    logger = logging.getLogger("torch.jit")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
