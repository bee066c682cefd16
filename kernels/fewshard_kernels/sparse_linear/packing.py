"""Sparse weights in the compressed forms torch multiplies, or the reason why there is none; made at load."""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

PATTERNS = ("2:4", "block")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_SEMI_STRUCTURED_DTYPES = (torch.bfloat16, torch.float16)
_SEMI_STRUCTURED_CAPABILITY = (8, 0)


@dataclass(frozen=True, slots=True, eq=False)
class SparseWeight:
    """One linear layer's weight: a snapshot, for inference.

    `dense` [O, I] holds the zeros; `compressed` is the same matrix in torch's semi-structured or BSR form, or
    None, and then `reason` says why; `form` names the pattern and, for blocks, their size and share kept.
    """

    dense: Tensor
    form: str
    compressed: Tensor | None
    reason: str = ""


def pack_sparse(weight: Tensor, pattern: str, block_size: int = 32) -> SparseWeight:
    """Compress `weight` [O, I], float32, bfloat16 or float16, whose pruned numbers are zero.

    `pattern`: "2:4", at most two numbers of each four neighbours along I are not zero (Mishra et al. 2021,
    arXiv 2104.08378); "block", squares of `block_size` are zero or kept as a whole. Raises ValueError for a
    weight that does not have the pattern, or whose sizes its blocks do not divide.
    """
    if pattern not in PATTERNS:
        raise ValueError(f"no pattern {pattern!r}; there are {', '.join(PATTERNS)}")
    if weight.ndim != 2 or weight.dtype not in _DTYPES:
        raise ValueError(
            f"a weight is [O, I] in float32, bfloat16 or float16, got {list(weight.shape)} {weight.dtype}"
        )
    weight = weight.detach()
    return _pack_2_of_4(weight) if pattern == "2:4" else _pack_blocks(weight, block_size)


def _pack_2_of_4(weight: Tensor) -> SparseWeight:
    if weight.shape[1] % 4:
        raise ValueError(f"2:4 needs I to be a multiple of 4, got {weight.shape[1]}")
    kept = (weight != 0).view(weight.shape[0], -1, 4).sum(dim=-1)
    if bool((kept > 2).any()):
        raise ValueError("the weight is not 2:4: more than two of four neighbours along I are not zero")
    reason = _no_semi_structured(weight)
    if reason is not None:
        return SparseWeight(weight, "2:4", None, reason)
    try:
        return SparseWeight(weight, "2:4", torch.sparse.to_sparse_semi_structured(weight))
    except RuntimeError as error:
        return SparseWeight(weight, "2:4", None, f"torch cannot compress it: {_first_line(error)}")


def _no_semi_structured(weight: Tensor) -> str | None:
    """Why 2:4 products cannot run on this device in this dtype, or None where they can."""
    if weight.device.type != "cuda":
        return f"2:4 products need a GPU, the weight is on {weight.device.type}"
    if torch.cuda.get_device_capability(weight.device) < _SEMI_STRUCTURED_CAPABILITY:
        return "2:4 products need a GPU of compute capability 8.0"
    if weight.dtype not in _SEMI_STRUCTURED_DTYPES:
        return f"2:4 products need bfloat16 or float16, the weight is {weight.dtype}"
    return None


def _pack_blocks(weight: Tensor, block_size: int) -> SparseWeight:
    if block_size < 1 or any(size % block_size for size in weight.shape):
        raise ValueError(f"blocks of {block_size} do not divide a weight of {list(weight.shape)}")
    with warnings.catch_warnings():
        # torch calls BSR a beta feature at each first use; the gate and the tests are what we rely on.
        warnings.simplefilter("ignore", UserWarning)
        compressed = weight.to_sparse_bsr((block_size, block_size))
    num_blocks = weight.numel() // block_size**2
    share = compressed.values().shape[0] / max(1, num_blocks)
    return SparseWeight(weight, f"block {block_size}, {_rounded(share)} kept", compressed)


def _rounded(share: float) -> str:
    """To steps of 5 %, so that layers pruned alike share one decision of the gate."""
    return f"{5 * round(20 * share)} %"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
