"""The CNN in 8 bits: every convolution; the head stays in fp32."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshard_kernels import Quantisation, quantised_weight
from fewshard_models.image.convolution import folded, max_pool
from fewshard_models.image.int8 import Int8Conv, Int8Stage, Int8Stages, folded_int8
from fewshard_models.image.modeling import ConvNorm, FewshardImageForImageClassification, Stage, Stem
from fewshard_models.quantised.calibration import Sample, watched
from fewshard_models.quantised.tensors import code_of, code_tensors, required

_GELU_VANISHES = -3.2
"""GELU is within 0.003 of 0 below, so codes of what comes before it need not reach further."""
_CODES = ("input", "units", "output")
"""What has a code: a layer's input, what comes before its GELU, and after; of a stage, its output."""


class ImageCoder:
    """Samples, codes and changes one CNN. Names are those of its modules, then one of `_CODES`."""

    def __init__(self, network: FewshardImageForImageClassification) -> None:
        self._network = network
        self._layers = _modules(network, (Stem, ConvNorm))
        self._stages = _modules(network, (Stage,))

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def sample(self, run: Callable[[], object]) -> dict[str, Sample]:
        """See `Coder.sample`."""
        samples: dict[str, Sample] = defaultdict(Sample)

        def note(name: str, inputs: tuple[Any, ...]) -> None:
            before = _before_gelu(self._layers[name], inputs[0].float())
            samples[f"{name}.input"].add(inputs[0])
            samples[f"{name}.units"].add(before.clamp_min(_GELU_VANISHES))
            samples[f"{name}.output"].add(F.gelu(before))

        def note_stage(name: str) -> Any:
            return lambda _, __, out: samples[f"{name}.output"].add(out)

        hooks = [stage.register_forward_hook(note_stage(name)) for name, stage in self._stages.items()]
        with watched(self._layers, note), torch.inference_mode():
            run()
        for hook in hooks:
            hook.remove()
        return dict(samples)

    def encode(self, codes: Mapping[str, Quantisation]) -> dict[str, Tensor]:
        """See `Coder.encode`. Norms are not folded, so that the checkpoint has its source's tensors."""
        found: dict[str, Tensor] = {}
        for name, layer in self._layers.items():
            weight, scale = quantised_weight(_conv(layer).weight.detach())
            found |= {f"{_stem(name, layer)}.weight": weight, f"{_stem(name, layer)}.weight_scale": scale}
        for name, code in codes.items():
            found |= code_tensors(name, code)
        return found

    def attach(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        """See `Coder.attach`; no fractions are left between the layers."""
        names = [*(f"{name}.{each}" for name in self._layers for each in _CODES)]
        codes = {name: code_of(tensors, name) for name in [*names, *(f"{s}.output" for s in self._stages)]}
        stages = []
        for name in self._stages:
            down, first, second = f"{name}.down", f"{name}.block.0", f"{name}.block.1"
            convs = [self._coded(each, tensors, codes) for each in (down, first, second)]
            kept = [codes[f"{each}.output"] for each in (down, second, name)]
            stages.append(Int8Stage(*convs, *kept))  # type: ignore[arg-type]
        self._network.int8 = Int8Stages(codes["stem.input"], self._coded("stem", tensors, codes), stages)

    def _coded(self, name: str, tensors: Mapping[str, Tensor], codes: Mapping[str, Quantisation]) -> Int8Conv:
        layer = self._layers[name]
        ends = ("weight", "weight_scale")
        weight, scale = (required(tensors, f"{_stem(name, layer)}.{end}") for end in ends)
        conv, is_stem = _conv(layer), isinstance(layer, Stem)
        conv.weight = nn.Parameter(weight, requires_grad=False)
        weights = folded_int8(weight, scale, conv.bias, None if is_stem else layer.norm)
        of_layer = [codes[f"{name}.{each}"] for each in _CODES]
        return Int8Conv(weights, *of_layer, padding=int(not is_stem), pool=not is_stem and layer.pool)


def _modules(network: nn.Module, kinds: tuple[type, ...]) -> dict[str, Any]:
    return {name: module for name, module in network.named_modules() if isinstance(module, kinds)}


def _conv(layer: Stem | ConvNorm) -> nn.Conv2d:
    return layer if isinstance(layer, Stem) else layer.conv


def _stem(name: str, layer: Stem | ConvNorm) -> str:
    """The name of a layer's convolution."""
    return name if isinstance(layer, Stem) else f"{name}.conv"


def _before_gelu(layer: Stem | ConvNorm, maps: Tensor) -> Tensor:
    if isinstance(layer, Stem):
        return F.conv2d(maps, *folded(layer, None))
    made = F.conv2d(maps, *folded(layer.conv, layer.norm), padding=1)
    return max_pool(made) if layer.pool else made
