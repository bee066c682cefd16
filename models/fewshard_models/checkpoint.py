"""Reads and writes classifiers as Hugging Face directories. `classifier.load` chooses the loading function.

It loads only safetensors weights, of architectures of transformers or our own. Pickle files and code from a
checkpoint are never run. What is loaded is what the files say, or it is refused.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

import fewshard_models.image  # noqa: F401  registers its configuration
from fewshard_models import hub
from fewshard_models.agreement import require_agreement, require_experts, require_plausible
from fewshard_models.card import Card
from fewshard_models.config_file import load_config as load_config
from fewshard_models.errors import CheckpointError
from fewshard_models.lazy_compiler import no_draws_on_meta
from fewshard_models.quantised import dequantised, quantisation_of
from fewshard_models.text import FewshardTextForSequenceClassification
from fewshard_models.text.convert import convert_config, convert_weights
from fewshard_models.weight_files import StoredTensor, read_tensors, require_safetensors, stored_tensors

ZOO = Path(__file__).parent / "zoo"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded classifier in evaluation mode, with its directory and card."""

    directory: Path
    model: PreTrainedModel
    task: str
    card: Card | None


def resolve(path: str) -> Path:
    """Return the directory of `zoo:<name>`, `hf:<owner>/<name>[@<revision>]` or a path.

    Raises CheckpointError.
    """
    if path.startswith("zoo:"):
        return _zoo_directory(path.removeprefix("zoo:"))
    if path.startswith(hub.SCHEME):
        return hub.download(path)
    directory = Path(path).expanduser()
    if not directory.is_dir():
        raise CheckpointError(
            f"no checkpoint directory {path!r}; give zoo:<name>, hf:<owner>/<name> or a directory"
        )
    return directory


def save_checkpoint(model: PreTrainedModel, directory: Path, dtype: torch.dtype = torch.float16) -> None:
    """Write weights and configuration. Weights are stored as `dtype` to save space, and load in any."""
    directory.mkdir(parents=True, exist_ok=True)
    state = {name: _stored(tensor.detach(), dtype) for name, tensor in model.state_dict().items()}
    model.save_pretrained(directory, state_dict=state)


def _stored(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert to `dtype`, unless a finite value would overflow, as a batch norm's variance may."""
    if not tensor.is_floating_point():
        return tensor
    smaller = tensor.to(dtype)
    return (tensor if (smaller.isinf() & tensor.isfinite()).any() else smaller).contiguous()


def _zoo_directory(name: str) -> Path:
    directory = ZOO / name
    if "/" in name or not (directory / "config.json").is_file():
        names = ", ".join(sorted(entry.name for entry in ZOO.iterdir())) if ZOO.is_dir() else "none"
        raise CheckpointError(f"the bundled zoo has no {name!r}; it has {names}")
    return directory


def load_converted(directory: Path, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Load the weights of a BERT or a relative into our own encoder. Raises CheckpointError.

    transformers reads them, so that the same files are refused for the same reasons as for every network.
    """
    source = load_with_transformers(AutoModelForSequenceClassification, directory, config, torch.float32)
    with torch.device("meta"), no_draws_on_meta():
        model = FewshardTextForSequenceClassification(convert_config(config))
    model.load_state_dict(convert_weights(source.state_dict(), config), assign=True)
    return _cast(model.eval(), dtype)


def load_with_transformers(
    auto: Any, directory: Path, config: PreTrainedConfig, dtype: torch.dtype
) -> PreTrainedModel:
    """Load the network with an Auto class of transformers; quantised weights are dequantised.

    Raises CheckpointError, also for weights that are missing, of another shape, or not read.
    """
    stored = stored_tensors(directory, require_safetensors(directory))
    plain, weights = _dequantised(config, stored)
    try:
        with torch.device("meta"), no_draws_on_meta():
            network = auto.from_config(plain, trust_remote_code=False)
        _require_class(directory, config, type(network).__name__)
        require_plausible(directory, network, stored)
        require_experts(directory, network, stored)
        with no_draws_on_meta():
            model, found = type(network).from_pretrained(
                directory if weights is None else None,
                config=plain,
                state_dict=weights,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except CheckpointError:
        raise
    # transformers raises many kinds of errors; each means that these files are at fault
    except Exception as error:
        raise CheckpointError(f"{directory} cannot be loaded: {error}") from error
    given = stored if weights is None else {name: _described(weights[name]) for name in weights}
    require_agreement(directory, model, given, found)
    for tensor in chain(model.parameters(), model.buffers()):
        # transformers leaves weights mapped: they would change when somebody overwrites the file.
        tensor.data = tensor.data.clone()
    return model


def _require_class(directory: Path, config: PreTrainedConfig, name: str) -> None:
    """Refuse an architecture of another model type: transformers goes by the type and never says so."""
    if config.architectures and name not in config.architectures:
        raise CheckpointError(
            f"{directory}/config.json names the architecture {config.architectures[0]}, but its model_type "
            f"{config.model_type} is that of {name}; correct the one that is wrong"
        )


def _dequantised(
    config: PreTrainedConfig, stored: Mapping[str, StoredTensor]
) -> tuple[PreTrainedConfig, dict[str, Tensor] | None]:
    """Return the configuration of plain weights, and these; None if the stored ones are plain already."""
    is_quanto = any(name.endswith("._data") for name in stored)
    settings = quantisation_of(config) or ({"quant_method": "quanto"} if is_quanto else None)
    if settings is None:
        return config, None
    plain = copy.deepcopy(config)
    for part in (plain, plain.get_text_config()):
        vars(part).pop("quantization_config", None)
    return plain, dequantised(dict(read_tensors(stored)), settings)


def _described(tensor: Tensor) -> StoredTensor:
    return StoredTensor(Path(), "F32" if tensor.is_floating_point() else "I64", tuple(tensor.shape))


def _cast(model: FewshardTextForSequenceClassification, dtype: torch.dtype) -> PreTrainedModel:
    """Cast everything except the head and the router, which stay fp32."""
    kept = tuple(model._keep_in_fp32_modules_strict)
    for name, parameter in model.named_parameters():
        if not any(part in name.split(".") for part in kept):
            parameter.data = parameter.data.to(dtype)
    return model
