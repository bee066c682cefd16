"""Reads quantised checkpoints as plain weights: each stored number times its scale. `checkpoint` calls it.

Eight-bit formats need no library of their own and are read; the others are refused by name. Scales of
activations are dropped: activations are not rounded here, so answers are those of the network with the
dequantised weights. Checkpoints of `fewshard quantize` are read so too, where `dtype` is not theirs.

Sources, read in November 2026: compressed-tensors (`compressors/`, `quantization/lifecycle/forward.py`),
transformers 5.23 (`integrations/finegrained_fp8.py`, `fbgemm_fp8.py`, `bitsandbytes.py`), optimum-quanto
(`tensor/weights/qbytes.py`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewshard_models.errors import CheckpointError

_INT8_AND_FP8 = (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2)
_ACTIVATION_PART = re.compile(
    r"(?:^|[._])(?:input|units|output|activation|act|[kqv]|kv)_(?:scale|zero_point|scale_inv|scale_ub)$|\.weight_format$"
)
"""Tensors beside quantised weights which say nothing of the weights."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a method names the tensors of a quantised weight.

    data, scale, zero_point: ends of their names, which replace `plain`.
    divisor: a stored number times its scale is this many times the weight.
    plain: the end of the weight's usual name.
    """

    data: str
    scale: str
    zero_point: str = ""
    divisor: float = 1.0
    plain: str = ".weight"


_SCALED = _Layout(".weight", ".weight_scale", ".weight_zero_point")
OWN_METHOD = "fewshard"
"""`quant_method` of the checkpoints that `fewshard quantize` makes."""
_LAYOUTS = {
    OWN_METHOD: (_SCALED, _Layout(".w1", ".w1_scale", plain=".w1"), _Layout(".w2", ".w2_scale", plain=".w2")),
    "compressed-tensors": (_SCALED,),
    "fbgemm_fp8": (_SCALED,),
    "modelopt": (_SCALED,),
    "fp8": (_Layout(".weight", ".weight_scale_inv"),),
    "bitsandbytes": (_Layout(".weight", ".SCB", divisor=127.0),),
    "quanto": (_Layout(".weight._data", ".weight._scale"),),
}
_READ_FORMATS = {
    OWN_METHOD: ("int8",),
    "compressed-tensors": ("dense", "int-quantized", "float-quantized", "naive-quantized"),
    "modelopt": ("FP8",),
    "quanto": ("int8", "float8", "qint8", "qfloat8", "qfloat8_e4m3fn", "qfloat8_e5m2"),
}
"""Formats of a method that are read, where it has others."""

Settings = Mapping[str, Any]


def quantisation_of(config: Any) -> Settings | None:
    """Return a configuration's `quantization_config`; None if its weights are plain."""
    found = getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(), "quantization_config", None
    )
    if found is None or isinstance(found, Mapping):
        return found or None
    raise CheckpointError("quantization_config in config.json must be an object with a quant_method")


def dequantised(weights: Mapping[str, Tensor], settings: Settings) -> dict[str, Tensor]:
    """Return plain weights by their usual names; quantised ones become fp32.

    settings: the `quantization_config`.

    Raises CheckpointError for a method that is not read, and for a weight without its scale.
    """
    layouts = _layouts(settings)
    plain: dict[str, Tensor] = {}
    used: set[str] = set()
    for name, tensor in weights.items():
        layout = next((each for each in layouts if name.endswith(each.data)), None)
        if layout is not None and tensor.dtype in _INT8_AND_FP8:
            stem = name.removesuffix(layout.data)
            plain[stem + layout.plain] = _dequantise(stem, tensor, weights, layout, _block_of(settings))
            used |= {name, stem + layout.scale, stem + layout.zero_point}
    rest = {name: tensor for name, tensor in weights.items() if name not in used}
    return plain | {name: tensor for name, tensor in rest.items() if not _ACTIVATION_PART.search(name)}


def own_format(config: Any) -> str | None:
    """Return the number format of a checkpoint that `fewshard quantize` made; None for any other.

    Raises CheckpointError for a format that is not known.
    """
    settings = quantisation_of(config) or {}
    if settings.get("quant_method") != OWN_METHOD:
        return None
    _layouts(settings)
    return str(settings["format"])


def _layouts(settings: Settings) -> tuple[_Layout, ...]:
    method = str(settings.get("quant_method", "of no stated method"))
    kind = _format_of(method, settings)
    if method in _LAYOUTS and kind in ("", *_READ_FORMATS.get(method, ())):
        return _LAYOUTS[method]
    raise CheckpointError(
        f"its weights are quantised: {method}{f', {kind}' if kind else ''}, which Fewshard does not read; it "
        "reads compressed-tensors (int8, fp8), fp8, fbgemm_fp8, modelopt (FP8), bitsandbytes (8 bits) and "
        "quanto (8 bits): save the model unquantised, or in one of these"
    )


def _format_of(method: str, settings: Settings) -> str:
    """Return the name of a method's format, or "" if it has one only."""
    if method == "compressed-tensors":
        groups = settings.get("config_groups")
        inner = [group.get("format") for group in groups.values()] if isinstance(groups, Mapping) else []
        formats = {
            str(each) for each in [settings.get("format"), *inner] if each and each != "mixed-precision"
        }
        unread = sorted(formats - set(_READ_FORMATS[method]))
        return unread[0] if unread else ""
    if method == "bitsandbytes":
        return "" if settings.get("load_in_8bit") and not settings.get("load_in_4bit") else "4 bits"
    if method == "fp8":
        return "fp4 experts" if settings.get("expert_dtype") == "fp4" else ""
    field = {OWN_METHOD: "format", "modelopt": "quant_algo", "quanto": "weights"}.get(method)
    return str(settings.get(field, "")) if field else ""


def _block_of(settings: Settings) -> tuple[int, int] | None:
    """Return rows and columns of the blocks that share a scale; None if the settings do not say."""
    found = settings.get("weight_block_size")
    groups = settings.get("config_groups")
    if found is None and isinstance(groups, Mapping):
        found = next((each for each in map(_block_of_group, groups.values()) if each is not None), None)
    match found:
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            return rows, columns
    return None


def _block_of_group(group: Any) -> list[int] | None:
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        return None
    if isinstance(size := weights.get("group_size"), int) and size > 0:
        return [1, size]
    return weights.get("block_structure")


def _dequantise(
    stem: str, data: Tensor, weights: Mapping[str, Tensor], layout: _Layout, block: tuple[int, int] | None
) -> Tensor:
    name = stem + layout.data
    scale = weights.get(stem + layout.scale)
    if scale is None:
        raise CheckpointError(
            f"{name} is stored in 8 bits without {stem + layout.scale}; the checkpoint is incomplete: copy "
            "it again"
        )
    if bool(weights.get(stem + ".weight_format", torch.zeros(1)).any()):
        raise CheckpointError(
            f"{name} is stored in an order that only bitsandbytes on one card knows; save it unquantised"
        )
    number = data.to(torch.float32)
    if layout.zero_point and (zero := weights.get(stem + layout.zero_point)) is not None:
        number = number - _spread(name, zero.to(torch.float32), data.shape, block)
    return number * _spread(name, _as_float(scale), data.shape, block) / layout.divisor


def _as_float(scale: Tensor) -> Tensor:
    """Return fp32 scales. Scales of one byte are powers of two (OCP's E8M0)."""
    return (
        torch.exp2(scale.to(torch.float32) - 127) if scale.dtype == torch.uint8 else scale.to(torch.float32)
    )


def _spread(name: str, scale: Tensor, shape: torch.Size, block: tuple[int, int] | None) -> Tensor:
    """Repeat scales, one a tensor, row, group or block, so that they multiply a weight of this shape."""
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.ndim == 1 and len(scale) == shape[0]:
        scale = scale.reshape(-1, *[1] * (len(shape) - 1))
    if scale.ndim == len(shape):
        for axis, (num_scales, size) in enumerate(zip(scale.shape, shape, strict=True)):
            if num_scales in (1, size):
                continue
            length = block[axis - len(shape) + 2] if block and axis >= len(shape) - 2 else 0
            if not length and size % num_scales == 0:
                length = size // num_scales
            if not length or -(-size // length) != num_scales:
                break
            scale = scale.repeat_interleave(length, axis).narrow(axis, 0, size)
        else:
            return scale
    raise CheckpointError(
        f"{name} is {list(shape)} and its scales are {list(scale.shape)}, which do not divide it; "
        "the checkpoint is damaged: copy it again"
    )
