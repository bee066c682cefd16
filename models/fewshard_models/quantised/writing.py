"""Writes an 8-bit checkpoint: weights and scales, configuration, and the tokenizer's or processor's files."""

import copy
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from fewshard_models.quantised.reading import OWN_METHOD
from fewshard_models.weight_files import INDEX, SINGLE

_NOT_COPIED = ("config.json", "card.json", INDEX)


@contextmanager
def whole_directory(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` at the end of the block; an error leaves nothing."""
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def write_int8(network: PreTrainedModel, coded: Mapping[str, Tensor], source: Path, out: Path) -> None:
    """Write into an existing folder.

    network: with the weights as fractions; its tables are stored in fp16, what else is left in fp32.
    coded: the tensors of its 8-bit layers.
    source: the directory whose other files are copied.
    """
    tensors = {name: _plain(name, each) for name, each in network.state_dict().items()} | dict(coded)
    config = copy.deepcopy(network.config)
    config.architectures = [type(network).__name__]
    config.quantization_config = {"quant_method": OWN_METHOD, "format": "int8"}
    config.save_pretrained(out)
    save_file({name: each.contiguous() for name, each in tensors.items()}, out / SINGLE, {"format": "pt"})
    shutil.copymode(out / "config.json", out / SINGLE)  # safetensors lets the owner alone read it
    for file in source.iterdir():
        if file.suffix in (".json", ".txt", ".model") and file.name not in _NOT_COPIED:
            shutil.copy(file, out / file.name)


def _plain(name: str, tensor: Tensor) -> Tensor:
    is_table = tensor.ndim == 2 and name.endswith("embeddings.weight")
    fits = not is_table or bool(tensor.abs().amax() <= torch.finfo(torch.float16).max)
    return tensor.to(torch.float16) if is_table and fits else tensor
