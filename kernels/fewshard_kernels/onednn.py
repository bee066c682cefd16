"""What oneDNN, the library of products behind torch on a CPU, can fuse and multiply on this machine."""

import torch

from fewshard_core.formats import FORMATS

# oneDNN's name for each activation, and its variant (empty if there is only one).
ONEDNN_ACTIVATIONS = {
    "gelu": ("gelu", "none"),
    "gelu_pytorch_tanh": ("gelu", "tanh"),
    "relu": ("relu", ""),
    "silu": ("swish", ""),
}


def onednn_multiplies(dtype: torch.dtype) -> bool:
    """Whether oneDNN supports matrix products in `dtype` on this CPU.

    >>> onednn_multiplies(torch.float64)
    False
    """
    known = {each.compute: each for each in FORMATS}.get(str(dtype).removeprefix("torch."))
    return torch.backends.mkldnn.is_available() and known is not None and known.multiplies("cpu")
