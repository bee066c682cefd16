"""How codes of activations are stored among a checkpoint's tensors: `NAME_scale` and `NAME_zero_point`."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fewshard_kernels import Quantisation
from fewshard_models.errors import CheckpointError


def code_tensors(name: str, *codes: Quantisation) -> dict[str, Tensor]:
    """The two tensors, [number of codes], that store codes under a name."""
    scales = torch.tensor([code.scale for code in codes], dtype=torch.float32)
    zero_points = torch.tensor([code.zero_point for code in codes], dtype=torch.int32)
    return {f"{name}_scale": scales, f"{name}_zero_point": zero_points}


def codes_of(tensors: Mapping[str, Tensor], name: str) -> tuple[Quantisation, ...]:
    """The codes that are stored under a name. Raises CheckpointError if they are missing or impossible."""
    scales, zero_points = (required(tensors, f"{name}_{part}") for part in ("scale", "zero_point"))
    if scales.shape != zero_points.shape or not bool((scales > 0).all() and scales.isfinite().all()):
        raise CheckpointError(
            f"{name}_scale must hold numbers above 0; the checkpoint is damaged: make it anew"
        )
    if not bool(((zero_points >= 0) & (zero_points <= 255)).all()):
        raise CheckpointError(
            f"{name}_zero_point must lie in 0..255; the checkpoint is damaged: make it anew"
        )
    pairs = zip(scales.tolist(), zero_points.tolist(), strict=True)
    return tuple(Quantisation(scale, zero_point) for scale, zero_point in pairs)


def code_of(tensors: Mapping[str, Tensor], name: str) -> Quantisation:
    """The one code that is stored under a name. Raises CheckpointError."""
    (code,) = codes_of(tensors, name)
    return code


def required(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """The tensor of this name. Raises CheckpointError if there is none, or it holds what is not finite."""
    found = tensors.get(name)
    if found is None or (found.is_floating_point() and not bool(found.isfinite().all())):
        state = "lacks" if found is None else "has numbers that are not finite in"
        raise CheckpointError(f"the 8-bit checkpoint {state} {name}; make it anew with fewshard quantize")
    return found
