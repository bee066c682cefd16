"""The text encoder in 8 bits: the linear layers and experts of its layers; the head stays in fp32.

The projection of narrow word embeddings stays in fractions: it takes a fiftieth of the products, and its code
would add as much error as a layer (docs/log.md).
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fewshard_kernels import Int8Experts, Quantisation, quantised_weight
from fewshard_models.quantised.calibration import Sample, watched
from fewshard_models.quantised.tensors import code_of, code_tensors, codes_of, required
from fewshard_models.text.feed_forward import DenseFeedForward, MoeFeedForward
from fewshard_models.text.layers import Int8Linear, Linear, choose_experts
from fewshard_models.text.modeling import FewshardTextForSequenceClassification


class TextCoder:
    """Samples, codes and changes one encoder. Names are those of its modules."""

    def __init__(self, network: FewshardTextForSequenceClassification) -> None:
        self._network = network
        self._linears = _modules(network, Linear)
        self._linears.pop("embeddings.word_projection", None)
        self._experts = _modules(network, MoeFeedForward)

    @property
    def num_layers(self) -> int:
        return len(self._linears) + len(self._experts)

    def sample(self, run: Callable[[], object]) -> dict[str, Sample]:
        """What the layers are given while `run` runs the network, which must not be packed.

        An expert layer adds a sample `NAME.units.E` for each expert E; it is empty if E was never chosen.
        """
        samples: dict[str, Sample] = defaultdict(Sample)

        def note(name: str, inputs: tuple[Any, ...]) -> None:
            samples[name].add(inputs[0])
            if name in self._experts:
                for expert, units in enumerate(_units(self._experts[name], *inputs)):
                    samples[f"{name}.units.{expert}"].add(units)

        with watched({**self._linears, **self._experts}, note), torch.inference_mode():
            run()
        return dict(samples)

    def encode(self, codes: Mapping[str, Quantisation]) -> dict[str, Tensor]:
        """The tensors of the 8-bit layers as they are stored, by name."""
        found: dict[str, Tensor] = {}
        for name, linear in self._linears.items():
            weight, scale = quantised_weight(linear.weight.detach())
            found |= {f"{name}.weight": weight, f"{name}.weight_scale": scale}
            found |= code_tensors(f"{name}.input", codes[name])
        for name, layer in self._experts.items():
            for part in ("w1", "w2"):
                weight, scale = quantised_weight(getattr(layer, part).detach().flatten(0, 1))
                found[f"{name}.{part}"] = weight.view(getattr(layer, part).shape)
                found[f"{name}.{part}_scale"] = scale.view(len(layer.w1), -1, 1)
            found |= code_tensors(f"{name}.input", codes[name])
            found |= code_tensors(
                f"{name}.units", *(codes[f"{name}.units.{e}"] for e in range(len(layer.w1)))
            )
        return found

    def attach(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        """Replace the network's layers by 8-bit ones. Raises CheckpointError for a tensor that is missing.

        dtype: of what the layers return.
        """
        for name, linear in self._linears.items():
            weight, scale = (required(tensors, f"{name}.{end}") for end in ("weight", "weight_scale"))
            coded = Int8Linear(weight, scale, linear.bias, code_of(tensors, f"{name}.input"), dtype)
            parent, _, own = name.rpartition(".")
            setattr(self._network.get_submodule(parent), own, coded)
        embeddings = self._network.embeddings
        if embeddings.word_projection is not None:
            embeddings.word_embeddings.to(dtype)
            embeddings.word_projection.to(dtype)
        for name, layer in self._experts.items():
            layer.code(_stored_experts(tensors, name, layer), dtype)
        for layer in self._network.modules():
            # GELU is fused into the first product, which then writes codes for the second.
            if isinstance(layer, DenseFeedForward) and isinstance(layer.down, Int8Linear):
                layer.up.feeds = layer.down.rows


def _modules(network: nn.Module, kind: type[Any]) -> dict[str, Any]:
    return {name: module for name, module in network.named_modules() if isinstance(module, kind)}


def _stored_experts(tensors: Mapping[str, Tensor], name: str, layer: MoeFeedForward) -> Int8Experts:
    w1, w2 = required(tensors, f"{name}.w1"), required(tensors, f"{name}.w2")
    scales = [required(tensors, f"{name}.{part}_scale").flatten(1) for part in ("w1", "w2")]
    b1, b2 = layer.b1.detach().float(), layer.b2.detach().float()
    rows, units = code_of(tensors, f"{name}.input"), codes_of(tensors, f"{name}.units")
    return Int8Experts(w1, scales[0], b1, w2, scales[1], b2, rows, units)


def _units(layer: MoeFeedForward, hidden: Tensor, packed: Any) -> list[Tensor]:
    """For each expert, the activated units [R, I] of its rows."""
    hidden = hidden[: packed.num_tokens]
    experts = choose_experts(hidden, packed, layer.router, layer.config)[0].experts
    rows = [hidden[(experts == expert).any(dim=1)] for expert in range(len(layer.w1))]
    return [layer.units(each, expert) for expert, each in enumerate(rows)]
