"""Loads a checkpoint as a classifier. Importing this file registers the bundled classes."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    PreTrainedConfig,
)

from fewshard_core.formats import AUTO, FORMATS
from fewshard_core.values import Execution
from fewshard_kernels.moe_ffn.layout_timing import remember_in
from fewshard_models.card import load_card
from fewshard_models.checkpoint import Checkpoint, load_config, resolve
from fewshard_models.classifier import image, packed_text, padded_text, padded_tokens  # noqa: F401  each registers its classes
from fewshard_models.classifier.engines import ENGINES, TORCH, use_engine
from fewshard_models.classifier.execution import (
    Parallel,
    measured_budget,
    measured_format,
    measured_threads,
    recalled_threads,
    ways,
)
from fewshard_models.classifier.network import NetworkClassifier, describe
from fewshard_models.classifier.registry import CLASSIFIERS
from fewshard_models.devices import Choice, choose_device, choose_dtype, storage_dtype
from fewshard_models.errors import CheckpointError
from fewshard_models.quantised import own_format
from fewshard_models.quantised.coding import attach
from fewshard_models.tuning.cache import tuning_cache
from fewshard_models.tuning.choice import Measured
from fewshard_models.tuning.kept import Shape, is_measuring
from fewshard_models.weight_files import require_safetensors, stored_tensors

logger = logging.getLogger(__name__)


def load(
    path: str | Path,
    device: str = "auto",
    dtype: str = "auto",
    name: str = "",
    threads: Sequence[int] = (),
    engine: str = "auto",
) -> NetworkClassifier:
    """Load a checkpoint for inference, as the server does.

    path: a directory, zoo:NAME for a bundled model, or hf:OWNER/NAME or hf:OWNER/NAME@REVISION for one of the
        Hugging Face Hub.
    device: "cpu", "cuda", or "auto" for CUDA if there is a device.
    dtype: a number format ("fp32", "bf16", "fp16", or "int8" for a checkpoint that `fewshard quantize` made),
        or "auto" for the checkpoint's own, else for the fastest in which it answers as it should. On a CPU
        that is measured, once for each shape of a checkpoint, and kept in a cache.
    name: the model's name in answers; by default the last part of the path.
    threads: numbers of threads to choose from by measurement, on a CPU, the first being the one that others
        must beat; torch's number is then changed.
    engine: "torch", "openvino" (the extra of this name, on a CPU), or "auto" for OpenVINO where it is
        installed, answers as torch does and is faster.

    Raises CheckpointError for a checkpoint that is missing, damaged or unsupported, or that cannot answer
    ordinary inputs or run in the engine; and ValueError for an unknown device, format or engine.
    """
    if engine not in (AUTO, *ENGINES):
        raise ValueError(f"there is no engine {engine!r}; there are {AUTO}, {', '.join(ENGINES)}")
    directory = resolve(str(path))
    name = name or directory.resolve().name
    chosen = choose_device(device).name
    remember_in(tuning_cache())
    choice = _stated(directory, dtype, chosen)
    if chosen == "cpu" and is_measuring():
        measuring = _Measuring(directory, name)
        model, shape = measuring.load(choice, threads), measuring.shape.text
    else:
        by_rule = choice or choose_dtype(dtype, chosen)
        model, shape = _load_by_rule(directory, name, chosen, by_rule, dtype == AUTO), ""
        engine = TORCH if engine == AUTO else engine
    use_engine(model, engine, shape, partial(_load_able, directory, name, chosen, "fp32"))
    return model


def _load_by_rule(
    directory: Path, name: str, device: str, chosen: Choice, may_change: bool
) -> NetworkClassifier:
    try:
        model = _load_able(directory, name, device, chosen.name)
    except CheckpointError as error:
        if not may_change or chosen.name == "fp32":
            raise
        model = _load_able(directory, name, device, "fp32")
        logger.warning("model %r runs in fp32, since it cannot in %s: %s", name, chosen.name, error)
        chosen = Choice("fp32", f"it cannot run in {chosen.name}")
    return executed(model, Execution(chosen.reason))


def compare(path: str | Path, dtype: str, threads: Sequence[int], anew: bool) -> dict[str, Measured]:
    """Return what `load` decides by on this CPU: "format" if neither `dtype` nor the checkpoint states one,
    "threads" if any are given, and "tokens".

    anew: measure again what is in the cache. Raises as `load` does.
    """
    directory = resolve(str(path))
    cache = tuning_cache()
    if anew:
        cache.forget("experts ")
    remember_in(cache)
    choice = _stated(directory, dtype, "cpu")
    return _Measuring(directory, directory.resolve().name).compare(choice, threads, anew)


class _Measuring:
    """Loads one checkpoint on this CPU as measurements say."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory, self._name = directory, name
        self.shape = shape_of(directory)

    def load(self, choice: Choice | None, threads: Sequence[int]) -> NetworkClassifier:
        """Load in the format of `choice`; without one in the fastest."""
        if choice is not None:
            return self._with_threads(choice.name, choice.reason, threads)
        try:
            measured = measured_format(self.shape, self.load_in)
        except CheckpointError:  # in every format; the server's own check, or this, tells the user why
            return _load_by_rule(self._directory, self._name, "cpu", choose_dtype(), True)
        for each in measured.order:
            try:
                model = self._with_threads(each, measured.reason, threads)
                if len(measured.order) > 1:
                    model.self_check()
                return model
            except CheckpointError as error:
                logger.warning("model %r does not run in %s: %s", self._name, each, error)
        return _load_by_rule(self._directory, self._name, "cpu", choose_dtype(), True)

    def compare(self, choice: Choice | None, threads: Sequence[int], anew: bool) -> dict[str, Measured]:
        """See `compare`."""
        found: dict[str, Measured] = {}
        if choice is None:
            found["format"] = measured_format(self.shape, self.load_in, anew)
        model = self.load_in(found["format"].order[0] if choice is None else choice.name)
        if threads:
            found["threads"] = measured_threads(self.shape, model, threads, anew)
        return found | {"tokens": measured_budget(self.shape, model, anew)}

    def load_in(self, dtype: str) -> NetworkClassifier:
        return _load_able(self._directory, self._name, "cpu", dtype)

    def _with_threads(self, dtype: str, reason: str, threads: Sequence[int]) -> NetworkClassifier:
        """Load in a format, with the number of threads that is fastest, and its layouts."""
        if not threads:
            model = self.load_in(dtype)
            return executed(model, Execution(reason, max_batch_tokens=self._budget(model)))
        found, by_name = recalled_threads(self.shape, dtype, threads), ways(threads)
        torch.set_num_threads(by_name[found.chosen].num_threads if found else threads[0])
        model = self.load_in(dtype)
        if found is None:
            found = measured_threads(self.shape, model, threads)
            if by_name[found.chosen].num_threads != threads[0]:
                torch.set_num_threads(by_name[found.chosen].num_threads)
                model = self.load_in(dtype)  # experts' layouts depend on the number of threads
        way = by_name[found.chosen]
        if not model.can_overlap and way.num_streams > 1:  # another model of this size may
            way = Parallel(1, threads[0])
        budget = self._budget(model)
        return executed(model, Execution(reason, way.num_threads, way.num_streams, found.reason, budget))

    def _budget(self, model: NetworkClassifier) -> int:
        return int(measured_budget(self.shape, model).chosen)


def executed(model: NetworkClassifier, execution: Execution) -> NetworkClassifier:
    """Return the model, having noted and said how it runs."""
    model.info = replace(model.info, execution=execution)
    logger.info("model %r runs in %s (%s)", model.info.name, model.info.dtype, execution.dtype_reason)
    return model


def shape_of(directory: Path) -> Shape:
    """Return the shape by which measurements of a checkpoint are kept. Raises CheckpointError."""
    config = load_config(directory)
    stored = stored_tensors(directory, require_safetensors(directory))
    return Shape.of(_architecture(config, directory), config, sum(each.size for each in stored.values()))


def _stated(directory: Path, dtype: str, device: str) -> Choice | None:
    """Return the format that is asked for, or in which a checkpoint's weights are stored; None for neither.

    Raises as `_stored_format` does, and ValueError for an unknown format.
    """
    if stored := _stored_format(directory, dtype, device):
        return Choice(stored, "the checkpoint's own" if dtype == AUTO else "asked for")
    return None if dtype == AUTO else choose_dtype(dtype, device)


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
