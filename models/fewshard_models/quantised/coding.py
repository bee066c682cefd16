"""Our networks in 8 bits: samples what their layers are given, codes their weights, and changes them.

An architecture is one `Coder`, registered in `coder_for`.
"""

from collections.abc import Callable, Mapping
from functools import singledispatch
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from fewshard_kernels import Quantisation
from fewshard_models.devices import choose_dtype, storage_dtype
from fewshard_models.errors import CheckpointError
from fewshard_models.image import FewshardImageForImageClassification
from fewshard_models.quantised.calibration import Sample
from fewshard_models.quantised.image import ImageCoder
from fewshard_models.quantised.text import TextCoder
from fewshard_models.text.modeling import FewshardTextForSequenceClassification
from fewshard_models.weight_files import read_tensors, require_safetensors, stored_tensors


class Coder(Protocol):
    """One network of one architecture. Names of samples, codes and tensors are those of its modules."""

    @property
    def num_layers(self) -> int: ...

    def sample(self, run: Callable[[], object]) -> dict[str, Sample]:
        """What the layers are given while `run` runs the network, which is not prepared for inference."""

    def encode(self, codes: Mapping[str, Quantisation]) -> dict[str, Tensor]:
        """The tensors of the 8-bit layers as they are stored."""

    def attach(self, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        """Replace the network's layers by 8-bit ones; `dtype` is that of what they return."""


@singledispatch
def coder_for(network: nn.Module) -> Coder:
    """Raises CheckpointError for an architecture that has none."""
    raise CheckpointError(
        f"{type(network).__name__} cannot be quantised: fewshard quantize takes Fewshard's encoder and CNN, "
        "and BERT, DistilBERT, RoBERTa, XLM-RoBERTa and CamemBERT, which become its encoder; serve this one "
        "with dtype auto"
    )


@coder_for.register
def _(network: FewshardTextForSequenceClassification) -> Coder:
    return TextCoder(network)


@coder_for.register
def _(network: FewshardImageForImageClassification) -> Coder:
    return ImageCoder(network)


def codes_for(
    samples: Mapping[str, Sample], choose: Callable[[Sample], Quantisation]
) -> dict[str, Quantisation]:
    """The code of each sample. Experts that were never chosen get the widest code of their layer's others."""
    found = {name: choose(sample) for name, sample in samples.items() if not sample.is_empty}
    for name in samples.keys() - found.keys():
        layer = name.rpartition(".")[0]
        others = [code for other, code in found.items() if other.rpartition(".")[0] == layer]
        found[name] = max(others, key=lambda code: code.scale)
    return found


def attach(network: nn.Module, directory: Path) -> None:
    """Make the 8-bit network of a directory of the network with its dequantised weights, in place.

    Fractions between the layers are in bf16 where this CPU multiplies it fast, else in fp32.

    Raises CheckpointError for a missing tensor.
    """
    stored = stored_tensors(directory, require_safetensors(directory))
    dtype = storage_dtype(choose_dtype(device="cpu").name)
    coder_for(network).attach(dict(read_tensors(stored)), dtype)
    network.requires_grad_(False)
