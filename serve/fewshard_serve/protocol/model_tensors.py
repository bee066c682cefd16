"""Which V2 tensors a classifier takes and gives, and what they mean; called by `http.host`.

Inputs. Text models: `text` BYTES [N] or [N,1], and `text_pair` of the same shape for pairs.
Image models, one of
- `image` UINT8 [N,H,W,3], or [H,W,3] for one item: RGB pixels;
- `image` BYTES [N] or [N,1]: image files, as base64 or a data URL where the tensor is JSON;
- `pixel_values` FP32, FP16 or BF16 [N,3,H,W] or [3,H,W]: normalised as the model expects.
Outputs: `scores` FP32 [N,C] (activated), `logits` FP32 [N,C], `label` BYTES [N], the best label of each item.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewshard_core.activation import activate
from fewshard_core.values import EncodedImage, Input, ModelInfo, PixelArray, TextInput
from fewshard_serve.errors import MalformedRequest, UnusableItem
from fewshard_serve.protocol.inputs import check_num_items, image_from_base64, text_input
from fewshard_serve.protocol.json_guard import nearest, quoted
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.oip import InferRequest, RequestedOutput
from fewshard_serve.protocol.tensors import Tensor, bytes_tensor

OUTPUT_NAMES = ("scores", "logits", "label")
_INPUT_NAMES = {"text": ("text", "text_pair"), "image": ("image", "pixel_values")}


def to_inputs(request: InferRequest, info: ModelInfo, limits: Limits) -> list[Input]:
    """The items of a request, for a model of either task.

    A raw request is one text in UTF-8, or one image file. Raises `MalformedRequest` for tensors the model
    does not take, `TooLarge` above a limit, `UnusableItem` for one bad item.
    """
    if request.raw is not None:
        return [_raw_item(request.raw, info, limits)]
    for name in request.inputs:
        if name not in _INPUT_NAMES[info.task]:
            hint = nearest(name, _INPUT_NAMES[info.task])
            raise MalformedRequest(f"{info.name} takes no input {quoted(name)}; {hint}")
    if info.task == "text":
        return [*_texts(request.inputs, limits)]
    return _images(request.inputs, limits)


def to_outputs(
    request: InferRequest, info: ModelInfo, logits: NDArray[np.float32]
) -> list[tuple[Tensor, bool]]:
    """The tensors a request asked for, or all three, each with whether it goes as binary."""
    wanted = request.outputs or tuple(
        RequestedOutput(name, request.is_binary_default) for name in OUTPUT_NAMES
    )
    return [(_output(output, info, logits), output.is_binary) for output in wanted]


def check_outputs(request: InferRequest) -> None:
    """Raises `MalformedRequest` for an output that no model has; called before any work is done."""
    for output in request.outputs:
        if output.name not in OUTPUT_NAMES:
            hint = nearest(output.name, OUTPUT_NAMES)
            raise MalformedRequest(f"there is no output {quoted(output.name)}; {hint}")
        if output.num_classes and output.name == "label":
            raise MalformedRequest("classification is for scores and logits; ask for one of them")


def metadata(info: ModelInfo) -> dict[str, Any]:
    """The V2 model metadata. It names the one input that every request may use; `input_tensors` has all."""
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
        ],
    }


def input_tensors(info: ModelInfo) -> list[dict[str, Any]]:
    """Every input tensor of a model, with what it is for; part of `GET …/config`."""
    if info.task == "text":
        return [
            {"name": "text", "datatype": "BYTES", "shape": [-1], "use": "the texts"},
            {"name": "text_pair", "datatype": "BYTES", "shape": [-1], "use": "optional: each text's second"},
        ]
    return [
        {"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3], "use": "RGB pixels"},
        {"name": "image", "datatype": "BYTES", "shape": [-1], "use": "image files"},
        {"name": "pixel_values", "datatype": "FP32", "shape": [-1, 3, -1, -1], "use": "normalised pixels"},
    ]


def _raw_item(raw: bytes, info: ModelInfo, limits: Limits) -> Input:
    if info.task == "text":
        return text_input(0, raw, None, limits)
    return EncodedImage(raw, limits.max_image_pixels)


def _texts(inputs: Mapping[str, Tensor], limits: Limits) -> list[TextInput]:
    if "text" not in inputs:
        raise MalformedRequest("the input `text` is missing; send BYTES of shape [N]")
    texts = _elements(inputs["text"], limits)
    if "text_pair" not in inputs:
        return [text_input(index, text, None, limits) for index, text in enumerate(texts)]
    pairs = _elements(inputs["text_pair"], limits)
    if len(pairs) != len(texts):
        raise MalformedRequest(f"text has {len(texts)} items, text_pair has {len(pairs)}; send as many")
    items = enumerate(zip(texts, pairs, strict=True))
    return [text_input(index, text, pair, limits) for index, (text, pair) in items]


def _elements(tensor: Tensor, limits: Limits) -> list[str | bytes]:
    """The elements of a BYTES tensor of shape [N] or [N,1]."""
    if tensor.datatype != "BYTES":
        raise MalformedRequest(f"{tensor.name} must be BYTES, not {tensor.datatype}")
    if tensor.shape[1:] not in ((), (1,)):
        raise MalformedRequest(f"{tensor.name} must have shape [N] or [N,1], not {list(tensor.shape)}")
    check_num_items(tensor.shape[0], limits)
    elements: list[str | bytes] = tensor.data.ravel().tolist()
    return elements


def _images(inputs: Mapping[str, Tensor], limits: Limits) -> list[Input]:
    if len(inputs) > 1:
        raise MalformedRequest("send image or pixel_values, not both")
    (tensor,) = inputs.values()
    if tensor.name == "pixel_values":
        return _normalised_images(tensor, limits)
    if tensor.datatype == "UINT8":
        return [*_pixel_arrays(tensor, "HW3", limits)]
    if tensor.datatype == "BYTES":
        return [_encoded_image(index, data, limits) for index, data in enumerate(_elements(tensor, limits))]
    raise MalformedRequest(f"image must be UINT8 pixels or BYTES of image files, not {tensor.datatype}")


def _encoded_image(index: int, data: str | bytes, limits: Limits) -> EncodedImage:
    if isinstance(data, str):
        return image_from_base64(index, data, limits)
    return EncodedImage(data, limits.max_image_pixels)


def _normalised_images(tensor: Tensor, limits: Limits) -> list[Input]:
    if tensor.datatype not in ("FP32", "FP16", "BF16"):
        raise MalformedRequest(f"pixel_values must be FP32, FP16 or BF16, not {tensor.datatype}")
    images = _pixel_arrays(tensor, "3HW", limits)
    for index, image in enumerate(images):
        if not np.isfinite(image.pixels).all():
            raise UnusableItem(index, "pixel_values holds NaN or infinity; send finite numbers")
    return [PixelArray(np.asarray(image.pixels, dtype=np.float32)) for image in images]


def _pixel_arrays(tensor: Tensor, layout: str, limits: Limits) -> list[PixelArray]:
    """Each image of a tensor whose last three dimensions are laid out so; a view, not a copy."""
    channels = layout.index("3") - 3
    if tensor.data.ndim not in (3, 4) or tensor.shape[channels] != 3:
        shape = ",".join(layout)
        raise MalformedRequest(
            f"{tensor.name} must have shape [N,{shape}] or [{shape}], not {list(tensor.shape)}"
        )
    batch = tensor.data if tensor.data.ndim == 4 else tensor.data[np.newaxis]
    check_num_items(len(batch), limits)
    if batch[0].size // 3 > limits.max_image_pixels:
        raise UnusableItem(0, f"the image has over {limits.max_image_pixels} pixels (max_image_pixels)")
    return [PixelArray(image) for image in batch]


def _output(output: RequestedOutput, info: ModelInfo, logits: NDArray[np.float32]) -> Tensor:
    if output.name == "label":
        return bytes_tensor("label", [info.labels[best] for best in logits.argmax(axis=1)], [len(logits)])
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
