"""Loads a checkpoint as a classifier. Importing this file registers the bundled classes."""

import logging
from pathlib import Path

import torch
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    PreTrainedConfig,
)

from fewshard_core.formats import AUTO, FORMATS
from fewshard_models.card import load_card
from fewshard_models.checkpoint import Checkpoint, load_config, resolve
from fewshard_models.classifier import image, packed_text, padded_text  # noqa: F401  each registers its classes
from fewshard_models.classifier.network import NetworkClassifier, describe
from fewshard_models.classifier.registry import CLASSIFIERS
from fewshard_models.devices import choose_device, choose_dtype, storage_dtype
from fewshard_models.errors import CheckpointError
from fewshard_models.quantised import own_format
from fewshard_models.quantised.coding import attach

logger = logging.getLogger(__name__)


def load(path: str | Path, device: str = "auto", dtype: str = "auto", name: str = "") -> NetworkClassifier:
    """Load a checkpoint for inference, as the server does.

    path: a directory, zoo:NAME for a bundled model, or hf:OWNER/NAME for one of the Hugging Face Hub.
    device: "cpu", "cuda", or "auto" for CUDA if there is a device.
    dtype: a number format ("fp32", "bf16", "fp16", or "int8" for a checkpoint that `fewshard quantize` made),
        or "auto" for the checkpoint's own, else for a fast one on the device that the network can run in.
    name: the model's name in answers; by default the last part of the path.

    Raises CheckpointError for a checkpoint that is missing, damaged or unsupported, or that cannot answer
    ordinary inputs; and ValueError for an unknown device or format.
    """
    directory = resolve(str(path))
    name = name or directory.resolve().name
    chosen = choose_device(device).name
    chosen_dtype = _stored_format(directory, dtype, chosen) or choose_dtype(dtype, chosen).name
    try:
        return _load_able(directory, name, chosen, chosen_dtype)
    except CheckpointError as error:
        if dtype != AUTO or chosen_dtype == "fp32":
            raise
        model = _load_able(directory, name, chosen, "fp32")
        logger.warning("model %r runs in fp32, since it cannot in %s: %s", name, chosen_dtype, error)
        return model


def _stored_format(directory: Path, dtype: str, device: str) -> str | None:
    """Return the format that a checkpoint's weights are stored in, if it is to be served in that.

    "auto" leaves it where the device cannot multiply it. Raises CheckpointError where `dtype` asks for a
    stored format that the checkpoint does not have, or the device cannot multiply.
    """
    asked = None if dtype == AUTO else FORMATS[dtype]
    if asked is not None and not asked.is_stored:
        return None
    held = own_format(load_config(directory))
    if asked is not None and held != asked.name:
        raise CheckpointError(
            f"dtype {asked.name} needs a checkpoint that holds its weights so, and {directory} does not: run "
            f"fewshard quantize {directory} --data FILE --out DIR, and serve DIR"
        )
    if held is None or FORMATS[held].multiplies(device):
        return held
    if asked is not None:
        raise CheckpointError(
            f"this {device} cannot multiply {held}, which takes a CPU with VNNI; leave dtype out, and the "
            "weights are dequantised"
        )
    logger.warning(
        "%s is served with dequantised weights: this %s cannot multiply %s", directory, device, held
    )
    return None


def _load_able(directory: Path, name: str, device: str, dtype: str) -> NetworkClassifier:
    """Load a model that answers ordinary inputs. Raises CheckpointError."""
    checkpoint = load_checkpoint(directory, storage_dtype(dtype), device)
    number_format = FORMATS[dtype]
    if number_format.prepare is not None:
        number_format.prepare(checkpoint.model)
    if number_format.is_stored:
        attach(checkpoint.model, directory)
    model = from_checkpoint(checkpoint, name, device, dtype)
    model.check_able()
    return model


def load_checkpoint(
    directory: Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> Checkpoint:
    """Load the unprepared network, to change or measure it. Raises CheckpointError as `load` does."""
    config = load_config(directory)
    kind = CLASSIFIERS.find([_architecture(config, directory)], config, directory)
    network = kind.load_network(directory, config, dtype)
    return Checkpoint(directory, network.to(device).eval(), kind.task, load_card(directory))


def from_checkpoint(checkpoint: Checkpoint, name: str, device: str, dtype: str) -> NetworkClassifier:
    """Make a classifier of a network already on `device` in `dtype`. Prepares the network in place.

    Raises CheckpointError if the directory's other files cannot be used.
    """
    # The network's own configuration: the checkpoint may have been converted.
    config, architecture = checkpoint.model.config, type(checkpoint.model).__name__
    kind = CLASSIFIERS.find([architecture], config, checkpoint.directory)
    info = describe(name, kind, config, checkpoint.card, architecture, device, dtype)
    try:
        return kind(checkpoint, info)
    except CheckpointError:
        raise
    # tokenizers and processors raise many kinds of errors; each means that their files are at fault
    except Exception as error:
        raise CheckpointError(
            f"{checkpoint.directory} has files that cannot be used: {type(error).__name__}: {error}"
        ) from error


def task_of(directory: Path) -> str:
    """Return the task of a checkpoint, as in `ModelInfo.task`. Raises CheckpointError."""
    config = load_config(directory)
    return CLASSIFIERS.find([_architecture(config, directory)], config, directory).task


def _architecture(config: PreTrainedConfig, directory: Path) -> str:
    """Return the name of the network's class. Raises CheckpointError if config.json leaves it open.

    A model type with one class that classifies needs no name: the weights decide whether it fits.
    """
    stated: set[str] = set(config.architectures or [])
    if len(stated) == 1:
        return stated.pop()
    mappings = (MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING)
    known = [mapping[type(config)] for mapping in mappings if type(config) in mapping]
    names: list[str] = [
        kind.__name__ for each in known for kind in (each if isinstance(each, tuple) else (each,))
    ]
    if not stated and len(names) == 1:
        return names[0]
    raise CheckpointError(
        f"{directory}/config.json names {', '.join(sorted(stated)) or 'none'} as its architectures; name the "
        f"one class whose weights these are{f', as {names[0]}' if names else ''}"
    )
