"""Reads and writes classifiers as Hugging Face directories. `classifier.load` chooses the loading function.

It loads only safetensors weights, of architectures of transformers or our own. Pickle files and code from a
checkpoint are never run.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

import fewshard_models.image  # noqa: F401  registers its configuration
from fewshard_models.card import Card
from fewshard_models.errors import CheckpointError
from fewshard_models.text import FewshardTextForSequenceClassification
from fewshard_models.text.convert import convert_config, convert_weights

ZOO = Path(__file__).parent / "zoo"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded classifier in evaluation mode, with its directory and card."""

    directory: Path
    model: PreTrainedModel
    task: str
    card: Card | None


def resolve(path: str) -> Path:
    """Return the directory of `zoo:<name>`, `hf:<owner>/<name>` or a path. Raises CheckpointError."""
    if path.startswith("zoo:"):
        return _zoo_directory(path.removeprefix("zoo:"))
    if path.startswith("hf:"):
        return _hub_directory(path.removeprefix("hf:"))
    directory = Path(path).expanduser()
    if not directory.is_dir():
        raise CheckpointError(
            f"no checkpoint directory {path!r}; give zoo:<name>, hf:<owner>/<name> or a directory"
        )
    return directory


def load_config(directory: Path) -> PreTrainedConfig:
    """Read the directory's config.json. Raises CheckpointError if it is missing or damaged."""
    if not (directory / "config.json").is_file():
        raise CheckpointError(f"{directory} has no config.json; it is not a Hugging Face checkpoint")
    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    except Exception as error:
        raise CheckpointError(f"{directory}/config.json cannot be used: {error}") from error


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


def _hub_directory(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]))
    except Exception as error:
        raise CheckpointError(f"hf:{name} could not be downloaded: {error}") from error


def require_safetensors(directory: Path) -> list[Path]:
    """Return the weight files. Raises CheckpointError if no permitted file exists."""
    if files := weight_files(directory):
        return files
    if any(any(directory.glob(pattern)) for pattern in _PICKLES):
        raise CheckpointError(
            f"{directory} has pickle weights only, which can run code when loaded and are refused; "
            "save them as safetensors: model.save_pretrained(directory)"
        )
    raise CheckpointError(f"{directory} has no model.safetensors")


def weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files. Raises CheckpointError if a shard is missing."""
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        single = directory / "model.safetensors"
        return [single] if single.is_file() else []
    names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    if missing := [name for name in names if not (directory / name).is_file()]:
        raise CheckpointError(f"{directory} lacks {', '.join(missing)}, which its index names")
    return [directory / name for name in names]


def load_converted(directory: Path, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Load the weights of a BERT or a relative into our own encoder. Raises CheckpointError."""
    weights: dict[str, Tensor] = {}
    for file in require_safetensors(directory):
        weights.update(_read(file))
    model = FewshardTextForSequenceClassification(convert_config(config))
    found = model.load_state_dict(convert_weights(weights, config), strict=False)
    require_complete(directory, found.missing_keys)
    return _cast(model, dtype)


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged: {error}; copy it again") from error


def load_with_transformers(
    auto: Any, directory: Path, config: PreTrainedConfig, dtype: torch.dtype
) -> PreTrainedModel:
    """Load the network with an Auto class of transformers. Raises CheckpointError."""
    require_safetensors(directory)
    options: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True, "local_files_only": True}
    try:
        model, found = auto.from_pretrained(
            directory, config=config, dtype=dtype, output_loading_info=True, **options
        )
    except Exception as error:
        raise CheckpointError(f"{directory} cannot be loaded: {error}") from error
    # transformers fills missing weights with random values, which a server must not use.
    require_complete(directory, sorted(found["missing_keys"]) + sorted(map(str, found["mismatched_keys"])))
    return model


def require_complete(directory: Path, missing: list[str]) -> None:
    if missing:
        raise CheckpointError(
            f"{directory} lacks weights of the right shape for {', '.join(missing[:5])}"
            f"{' …' if len(missing) > 5 else ''}; is it a classifier's checkpoint, copied whole?"
        )


def _cast(model: FewshardTextForSequenceClassification, dtype: torch.dtype) -> PreTrainedModel:
    """Cast everything except the head and the router, which stay fp32."""
    kept = tuple(model._keep_in_fp32_modules_strict)
    for name, parameter in model.named_parameters():
        if not any(part in name.split(".") for part in kept):
            parameter.data = parameter.data.to(dtype)
    return model
