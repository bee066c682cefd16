"""The V2 input and output tensors of a model, by its task; the HTTP handlers and `rpc.convert` use it."""

from typing import Any

from fewshard_core.values import Input, ModelInfo
from fewshard_serve.core import Classified
from fewshard_serve.errors import MalformedRequest
from fewshard_serve.protocol.json_guard import nearest, quoted
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.oip import Expected, InferRequest, RequestedOutput
from fewshard_serve.protocol.tasks import TASKS, Task
from fewshard_serve.protocol.tensors import Tensor


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


def to_outputs(request: InferRequest, info: ModelInfo, answer: Classified) -> list[tuple[Tensor, bool]]:
    """The requested output tensors (by default all), each with whether it is sent as binary."""
    task = TASKS.of(info)
    wanted = request.outputs or tuple(
        RequestedOutput(each["name"], request.is_binary_default) for each in task.output_tensors(info)
    )
    tensors = task.outputs(wanted, info, answer, request.options)
    return [(tensor, output.is_binary) for tensor, output in zip(tensors, wanted, strict=True)]


def check_outputs(request: InferRequest, info: ModelInfo) -> None:
    """Raise `MalformedRequest` for an unknown output, or an option that the model does not have.

    Called before the model runs.
    """
    task = TASKS.of(info)
    task.check_options(request.options)
    known = [each["name"] for each in task.output_tensors(info)]
    for output in request.outputs:
        if output.name not in known:
            raise MalformedRequest(f"there is no output {quoted(output.name)}; {nearest(output.name, known)}")
        task.check_output(output)


def metadata(info: ModelInfo) -> dict[str, Any]:
    """The V2 model metadata. It only has the input that every request may use; `input_tensors` has all."""
    return {
        "name": info.name,
        "versions": [info.version],
        "platform": "fewshard",
        "inputs": [
            {key: entry[key] for key in ("name", "datatype", "shape")} for entry in input_tensors(info)[:1]
        ],
        "outputs": TASKS.of(info).output_tensors(info),
    }


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
