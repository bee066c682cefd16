"""The V2 input and output tensors of a classifier; the HTTP handlers and `rpc.convert` use it.

The inputs are those of the model's task. The outputs are `scores` FP32 [N,C] (activated), `logits` FP32 [N,C]
and `label` BYTES [N], the best label of each item. A model with thresholds has `assigned`
BOOL [N,C] too: which labels reach theirs.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewshard_core.activation import activate, assigned
from fewshard_core.values import Input, ModelInfo
from fewshard_serve.errors import MalformedRequest
from fewshard_serve.protocol.json_guard import nearest, quoted
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.oip import Expected, InferRequest, RequestedOutput
from fewshard_serve.protocol.tasks import TASKS, Task
from fewshard_serve.protocol.tensors import Tensor, bytes_tensor

OUTPUT_NAMES = ("scores", "logits", "label")
ASSIGNED = "assigned"
"""The output that only models with thresholds have."""


def expected(info: ModelInfo, limits: Limits) -> Expected:
    """What a model takes, for `parse_infer`."""
    task = TASKS.of(info)

    def look(name: str, datatype: str, shape: tuple[int, ...]) -> None:
        _check_name(task, info, name)
        task.check_tensor(name, datatype, shape, limits)

    return Expected(look, task.max_tensor_values(limits))


def to_inputs(request: InferRequest, info: ModelInfo, limits: Limits) -> list[Input]:
    """The items of a request, for a model of any task.

    A raw request is one item, such as a UTF-8 text or an image file. Raises `MalformedRequest` for tensors
    that the model does not accept, `TooLarge` above a limit, `UnusableItem` for one bad item.
    """
    task = TASKS.of(info)
    if request.raw is not None:
        return [task.from_bytes(request.raw, limits)]
    for name in request.inputs:
        _check_name(task, info, name)
    return task.from_tensors(request.inputs, limits)


def _check_name(task: Task, info: ModelInfo, name: str) -> None:
    if name not in task.tensor_names:
        hint = nearest(name, task.tensor_names)
        raise MalformedRequest(f"{info.name} takes no input {quoted(name)}; {hint}")


def to_outputs(
    request: InferRequest, info: ModelInfo, logits: NDArray[np.float32]
) -> list[tuple[Tensor, bool]]:
    """The requested output tensors (by default all), each with whether it is sent as binary."""
    wanted = request.outputs or tuple(
        RequestedOutput(name, request.is_binary_default) for name in output_names(info)
    )
    return [(_output(output, info, logits), output.is_binary) for output in wanted]


def output_names(info: ModelInfo) -> tuple[str, ...]:
    """The names of a model's output tensors."""
    return (*OUTPUT_NAMES, ASSIGNED) if info.thresholds else OUTPUT_NAMES


def check_outputs(request: InferRequest, info: ModelInfo) -> None:
    """Raise `MalformedRequest` for an unknown output. Called before the model runs."""
    for output in request.outputs:
        if output.name not in output_names(info):
            hint = nearest(output.name, output_names(info))
            raise MalformedRequest(f"there is no output {quoted(output.name)}; {hint}")
        if output.num_classes and output.name not in _OUTPUT_VALUES:
            raise MalformedRequest("classification is for scores and logits; ask for one of them")


def metadata(info: ModelInfo) -> dict[str, Any]:
    """The V2 model metadata. It only has the input that every request may use; `input_tensors` has all."""
    return {
        "name": info.name,
        "versions": [info.version],
        "platform": "fewshard",
        "inputs": [
            {key: entry[key] for key in ("name", "datatype", "shape")} for entry in input_tensors(info)[:1]
        ],
        "outputs": [
            {"name": "scores", "datatype": "FP32", "shape": [-1, len(info.labels)]},
            {"name": "logits", "datatype": "FP32", "shape": [-1, len(info.labels)]},
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            *_assigned_metadata(info),
        ],
    }


def _assigned_metadata(info: ModelInfo) -> list[dict[str, Any]]:
    return (
        [{"name": ASSIGNED, "datatype": "BOOL", "shape": [-1, len(info.labels)]}] if info.thresholds else []
    )


def triton_config(info: ModelInfo, limits: Limits) -> dict[str, Any]:
    """The model's configuration as Triton describes it, for tools that read it before they ask.

    With a `max_batch_size`, the dimensions of a tensor leave out the first one. Inputs that have no other are
    described without one (0), because perf_analyzer cannot send a tensor without dimensions.
    """
    described = metadata(info)
    is_batched = all(len(tensor["shape"]) > 1 for tensor in described["inputs"])
    return {
        "name": info.name,
        "platform": described["platform"],
        "backend": described["platform"],
        "max_batch_size": limits.max_items if is_batched else 0,
        "input": [_configured(tensor, is_batched) for tensor in described["inputs"]],
        "output": [_configured(tensor, is_batched) for tensor in described["outputs"]],
        "dynamic_batching": {},
    }


def _configured(tensor: dict[str, Any], is_batched: bool) -> dict[str, Any]:
    datatype = "STRING" if tensor["datatype"] == "BYTES" else tensor["datatype"]
    dims = list(tensor["shape"][is_batched:])
    return {"name": tensor["name"], "data_type": f"TYPE_{datatype}", "dims": dims}


def input_tensors(info: ModelInfo) -> list[dict[str, Any]]:
    """All input tensors of a model with their use; part of `GET …/config`."""
    return TASKS.of(info).described_tensors()


def _output(output: RequestedOutput, info: ModelInfo, logits: NDArray[np.float32]) -> Tensor:
    if output.name == "label":
        return bytes_tensor("label", [info.labels[best] for best in logits.argmax(axis=1)], [len(logits)])
    if output.name == ASSIGNED:
        return Tensor(ASSIGNED, "BOOL", assigned(activate(logits, info.problem_type), info))
    values = _OUTPUT_VALUES[output.name](info, logits)
    if output.num_classes:
        return _best_classes(output, info, values)
    return Tensor(output.name, "FP32", values)


_OUTPUT_VALUES: dict[str, Callable[[ModelInfo, NDArray[np.float32]], NDArray[np.float32]]] = {
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
