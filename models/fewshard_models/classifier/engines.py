"""Chooses what computes a network of transformers on a CPU: torch, or OpenVINO where it is installed.

OpenVINO is taken if it answers as torch does and is faster. Our own architectures have their own kernels.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fewshard_core.formats import AUTO, FORMATS
from fewshard_core.values import Item
from fewshard_models.classifier import openvino_network
from fewshard_models.classifier.limits import has_experts
from fewshard_models.classifier.network import NetworkClassifier
from fewshard_models.classifier.padded_text import PaddedText
from fewshard_models.devices import subnormals_flushed
from fewshard_models.errors import CheckpointError
from fewshard_models.tuning.cache import tuning_cache
from fewshard_models.tuning.choice import BATCHES, Candidate, Measured, decide
from fewshard_models.tuning.rounds import time_batches

logger = logging.getLogger(__name__)

TORCH, OPENVINO = "torch", "openvino"
ENGINES = (TORCH, OPENVINO)
LIMIT_S = 1.5
SMALLEST_SCALE = 0.1
"""Logits below this are compared as if they were this large, as the probe does."""

LoadExact = Callable[[], NetworkClassifier]
"""Loads the same checkpoint in fp32."""


def use_engine(model: NetworkClassifier, wished: str, shape: str, load_exact: LoadExact) -> None:
    """Let the engine compute the model's passes from now on that is wished or, with "auto", the fastest.

    shape: the key of measurements of this checkpoint.

    Raises CheckpointError if an engine is asked for by name and cannot compute this model.
    """
    if wished == TORCH:
        return
    if why := _obstacle(model):
        if wished == OPENVINO:
            raise CheckpointError(f"model {model.info.name!r} cannot run in OpenVINO: {why}")
        return
    key = f"engine {model.info.dtype} {torch.get_num_threads()} {shape}"
    found = Measured.of_json(tuning_cache().recall(key), ENGINES) if wished == AUTO else None
    if found is not None and found.chosen == TORCH:
        _note(model, TORCH, found.reason)
        return
    items = model.prepare(model.preprocessor.usual_inputs(BATCHES[-1]))
    try:
        compiled = _compiled(model, items, load_exact)
    except CheckpointError as error:
        if wished == OPENVINO:
            raise
        found = decide([Candidate(TORCH, {}), Candidate(OPENVINO, {}, str(error))])
        logger.warning("model %r runs in torch: %s", model.info.name, error)
    else:
        if wished == AUTO and found is None:
            found = _timed(model, compiled, items)
    if found is not None:
        tuning_cache().keep(key, found.as_json())
    if found is not None and found.chosen == TORCH:
        _note(model, TORCH, found.reason)
        return
    model.forward = compiled
    model.network.to("meta")  # its weights are OpenVINO's now
    _note(model, OPENVINO, "asked for" if found is None else found.reason)


def _note(model: NetworkClassifier, engine: str, reason: str) -> None:
    execution = replace(model.info.execution, engine=engine, engine_reason=reason)
    model.info = replace(model.info, execution=execution)
    logger.info("model %r is computed by %s (%s)", model.info.name, engine, reason)


def _obstacle(model: NetworkClassifier) -> str:
    """Return why OpenVINO cannot be tried for a model; "" if it can."""
    if not model.can_compile:
        return f"{model.info.architecture} has kernels of its own"
    if not openvino_network.is_installed():
        return "it is not installed; pip install 'fewshard[openvino]'"
    if model.device.type != "cpu":
        return f"it runs on {model.info.device}, and OpenVINO serves models on a CPU"
    if model.info.dtype not in openvino_network.PRECISIONS:
        return f"it has no {model.info.dtype} here; choose one of {', '.join(openvino_network.PRECISIONS)}"
    if has_experts(model.network.config):
        return "a trace keeps which experts one input has chosen"
    if isinstance(model, PaddedText) and model.depends_on_length:
        return "its network computes long texts in another way than short ones"
    return ""


def _compiled(
    model: NetworkClassifier, items: Sequence[Item], load_exact: LoadExact
) -> openvino_network.OpenVinoNetwork:
    """Return the compiled network. Raises CheckpointError if it cannot be made or answers otherwise."""
    exact = model if model.info.dtype == "fp32" else load_exact()
    example = _inputs_of(exact, [items[0], items[0]])
    compiled = openvino_network.compile_network(
        exact.network, example, model.info.dtype, torch.get_num_threads()
    )
    probes = model.prepare(model.preprocessor.probe_inputs())
    batches = [*([item] for item in (*probes, *items[:4])), list(items[:8])]
    expected = _answers(model, batches)
    with _computed_by(model, compiled):
        found = _answers(model, batches)
    scale = max(float(np.abs(expected).max()), SMALLEST_SCALE)
    tolerance = FORMATS[model.info.dtype].tolerance * scale
    worst = float(np.abs(expected - found).max())
    if not worst <= tolerance:
        raise CheckpointError(
            f"OpenVINO answers otherwise than torch: a logit is off by {worst:.3g}, more than "
            f"{tolerance:.2g} ({model.info.dtype})"
        )
    return compiled


def _answers(model: NetworkClassifier, batches: Sequence[list[Item]]) -> np.ndarray:
    with subnormals_flushed():
        return np.concatenate([model.run(batch).logits for batch in batches])


def _inputs_of(model: NetworkClassifier, items: Sequence[Item]) -> dict[str, torch.Tensor]:
    """Return what the network is called with for these items, which share a pass."""
    seen: list[dict[str, torch.Tensor]] = []

    def forward(**inputs: torch.Tensor) -> Any:
        seen.append(inputs)
        return model.network(**inputs)

    with _computed_by(model, forward):
        model.run(items)
    return seen[0]


@contextmanager
def _computed_by(model: NetworkClassifier, forward: Callable[..., Any]) -> Iterator[None]:
    before, model.forward = model.forward, forward
    try:
        yield
    finally:
        model.forward = before


def _timed(
    model: NetworkClassifier, compiled: openvino_network.OpenVinoNetwork, items: Sequence[Item]
) -> Measured:
    def runner(forward: Callable[..., Any]) -> Callable[[int], object]:
        def run(size: int) -> object:
            with _computed_by(model, forward):
                return model.run([items[row % len(items)] for row in range(size)])

        return run

    runs = {TORCH: runner(model.network), OPENVINO: runner(compiled)}
    with subnormals_flushed():
        rates = time_batches(runs, BATCHES, LIMIT_S)
    return decide([Candidate(name, rates[name]) for name in ENGINES])
