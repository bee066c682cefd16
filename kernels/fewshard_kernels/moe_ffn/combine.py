"""The last step of every torch path of `moe_ffn`: residual and LayerNorm in fp32, then one rounding."""

import torch.nn.functional as F
from torch import Tensor

from fewshard_kernels.moe_ffn.options import MoeOptions


def add_and_norm(y: Tensor, options: MoeOptions) -> Tensor:
    """LayerNorm(residual + y) for fp32 `y` [T, H], or as much of it as `options` names; fp32."""
    if options.residual is not None:
        y = options.residual.float() + y
    if options.norm is not None:
        weight, bias, eps = options.norm
        y = F.layer_norm(y, y.shape[-1:], weight.float(), None if bias is None else bias.float(), eps)
    return y
