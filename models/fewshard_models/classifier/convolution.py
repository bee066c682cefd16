"""Guards networks against convolutions that torch multiplies wrongly in bf16 on a CPU.

torch 2.13 with oneDNN answers some of them with other numbers, or with what lay in the memory before: kernels
above 3 x 3 over more than 3 channels, and outputs one pixel wide. Both AVX512-BF16 and AMX are wrong; fp32
and fp16 are right.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

_FIRST_CHANNELS = 3
"""oneDNN has kernels of its own for convolutions over images, which are right."""


def guard_convolutions(network: nn.Module) -> None:
    """Run those convolutions in fp32 from now on; the others stay in bf16."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.forward = partial(_forward, module, module.forward)  # type: ignore[method-assign]


def _forward(module: nn.Conv2d, forward: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    if images.dtype != torch.bfloat16 or images.device.type != "cpu" or is_right(module, images):
        return forward(images)
    weights = {name: parameter.float() for name, parameter in module.named_parameters()}
    # A subclass may compute its weights in `forward`, which is called once more, with all numbers in fp32.
    outputs: Tensor = functional_call(module, weights, (images.float(),))
    return outputs.to(images.dtype)


def is_right(module: nn.Conv2d, images: Tensor) -> bool:
    """Return whether torch is known to convolve these images right in bf16 on a CPU."""
    kernel, channels = module.kernel_size, module.in_channels
    is_depthwise = module.groups == channels > 1
    if kernel == (1, 1) or is_depthwise:
        return True
    is_small = max(kernel) <= 3 and kernel[0] == kernel[1] and module.dilation == (1, 1)
    return (is_small or channels <= _FIRST_CHANNELS) and _output_width(module, images) > 1


def _output_width(module: nn.Conv2d, images: Tensor) -> int:
    if isinstance(module.padding, str):
        return 0  # unknown, as for "same"
    reach = module.dilation[1] * (module.kernel_size[1] - 1)
    return (images.shape[-1] + 2 * module.padding[1] - reach - 1) // module.stride[1] + 1
