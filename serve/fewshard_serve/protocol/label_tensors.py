"""The V2 output tensors of models that label whole items; their tasks use it.

`scores` FP32 [N,C] (activated), `logits` FP32 [N,C] and `label` BYTES [N], the best label of each item. A
model with thresholds has `assigned` BOOL [N,C] too: which labels reach theirs.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewshard_core.activation import activate, assigned
from fewshard_core.values import ModelInfo
from fewshard_serve.errors import MalformedRequest
from fewshard_serve.protocol.oip import RequestedOutput
from fewshard_serve.protocol.tensors import Tensor, bytes_tensor

_ASSIGNED = "assigned"


def described(info: ModelInfo) -> list[dict[str, Any]]:
    """Name, data type and shape of each output."""
    width = len(info.labels)
    found = [
        {"name": "scores", "datatype": "FP32", "shape": [-1, width]},
        {"name": "logits", "datatype": "FP32", "shape": [-1, width]},
        {"name": "label", "datatype": "BYTES", "shape": [-1]},
    ]
    return (
        [*found, {"name": _ASSIGNED, "datatype": "BOOL", "shape": [-1, width]}] if info.thresholds else found
    )


def check(output: RequestedOutput) -> None:
    """Raise `MalformedRequest` if the best classes are asked of an output that has no scores."""
    if output.num_classes and output.name not in _VALUES:
        raise MalformedRequest("classification is for scores and logits; ask for one of them")


def tensor(output: RequestedOutput, info: ModelInfo, logits: NDArray[np.float32]) -> Tensor:
    """One requested output."""
    if output.name == "label":
        return bytes_tensor("label", [info.labels[best] for best in logits.argmax(axis=1)], [len(logits)])
    if output.name == _ASSIGNED:
        return Tensor(_ASSIGNED, "BOOL", assigned(activate(logits, info.problem_type), info))
    values = _VALUES[output.name](info, logits)
    if output.num_classes:
        return _best_classes(output, info, values)
    return Tensor(output.name, "FP32", values)


_VALUES: dict[str, Callable[[ModelInfo, NDArray[np.float32]], NDArray[np.float32]]] = {
    "scores": lambda info, logits: activate(logits, info.problem_type),
    "logits": lambda _, logits: logits,
}


def _best_classes(output: RequestedOutput, info: ModelInfo, values: NDArray[np.float32]) -> Tensor:
    """Triton's classification extension: BYTES [N, k] of "value:index:label", best first."""
    num_classes = min(output.num_classes, values.shape[1])
    order = np.argsort(-values, axis=1, kind="stable")[:, :num_classes]
    elements = [
        f"{row[index]:f}:{index}:{info.labels[index]}"
        for row, best in zip(values, order, strict=True)
        for index in best
    ]
    return bytes_tensor(output.name, elements, order.shape)
