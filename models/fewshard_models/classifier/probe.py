"""Asks a model that was just loaded a few made-up inputs, so that one that cannot answer is never ready.

`load` and groups of shards call it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewshard_core.formats import FORMATS
from fewshard_core.values import Item, ModelInfo
from fewshard_models.classifier.base import Preprocessor
from fewshard_models.errors import CheckpointError, UnusableInput

RunItems = Callable[[Sequence[Item]], NDArray[np.float32]]

MAX_MULTIPLICATIONS = {"cpu": 1.5e11}
"""The most that one probe text may cost, as tokens times parameters; about 2 s of two cores."""
MAX_GPU_MULTIPLICATIONS = 5e12
MIN_TOKENS = 64
"""Shorter texts are asked of a model of any size."""
SMALLEST_SCALE = 0.1
"""Logits below this are compared as if they were this large: they are small differences of large sums."""


def check_able(info: ModelInfo, preprocessor: Preprocessor, run: RunItems, network: Any = None) -> None:
    """Raise CheckpointError with the reason if `probe_problem` finds one, or if `run` fails."""

    def answer(batch: Sequence[Item]) -> NDArray[np.float32]:
        try:
            return run(batch)
        except Exception as error:  # a network that does not fit its files may raise anything
            raise CheckpointError(
                f"model {info.name!r} cannot answer {_told(batch)}: {type(error).__name__}: {error}"
            ) from error

    if problem := probe_problem(info, preprocessor, answer, network):
        raise CheckpointError(problem)


def probe_problem(info: ModelInfo, preprocessor: Preprocessor, run: RunItems, network: Any = None) -> str:
    """Run the preprocessor's probe inputs alone and in one batch. Returns what is wrong; "" if nothing.

    run: returns the logits of a batch; what it raises is raised.
    network: texts that would take it seconds are left out; None leaves out none.
    """
    try:
        items = preprocessor.items(preprocessor.probe_inputs(), True)
    except UnusableInput as error:
        return f"model {info.name!r} cannot prepare an ordinary input: {error.reason}"
    items = affordable(items, info.device, network)
    found: list[NDArray[np.float32]] = []
    for batch in [*([item] for item in items), items]:
        found.append(run(batch))
        if problem := _fault(info, found[-1], batch):
            return f"model {info.name!r} answers {_told(batch)} {problem}"
    if _difference(info, found[0], run(items[:1])):
        return (
            f"model {info.name!r} answers the same input differently each time; its network draws at random"
        )
    alone = np.concatenate(found[:-1])
    problem = _difference(info, alone, found[-1])
    if _are_same(alone) and not (_rounds(info) and _reads(network, info, items, run)):
        problem = "gives every input the same answer; its network does not read its input on this device"
    return problem and f"model {info.name!r} {problem}"


def affordable(items: Sequence[Item], device: str, network: Any) -> list[Item]:
    """Return the items without the long texts that would take this network seconds."""
    num_parameters = 0 if network is None else sum(each.numel() for each in network.parameters())
    budget = MAX_MULTIPLICATIONS.get(device, MAX_GPU_MULTIPLICATIONS)
    return [
        item for item in items if item.num_tokens <= MIN_TOKENS or item.num_tokens * num_parameters <= budget
    ]


def _fault(info: ModelInfo, logits: NDArray[np.float32], batch: Sequence[Item]) -> str:
    expected = (len(batch), len(info.labels))
    if logits.shape != expected:
        return (
            f"with logits of shape {list(logits.shape)}, not {list(expected)}: "
            "id2label of config.json does not fit the network's head"
        )
    if np.isfinite(logits).all():
        return ""
    remedy = "its weights are damaged" if info.dtype == "fp32" else "try dtype fp32"
    return f"with logits that are not finite ({info.dtype}); {remedy}"


def _are_same(alone: NDArray[np.float32]) -> bool:
    """Return whether all inputs have the same answer to the last bit, as where a kernel was left out."""
    return len(alone) > 1 and bool(np.all(alone == alone[0]))


def _rounds(info: ModelInfo) -> bool:
    """Return whether the number format may round different answers to one, as the few of a regression."""
    return FORMATS[info.dtype].compute != "float32"


def _reads(network: Any, info: ModelInfo, items: Sequence[Item], run: RunItems) -> bool:
    """Return whether the network's head is given something else for another item.

    The head is the last layer to run that has as many outputs as the model has labels. Without one: False.
    """
    given: list[Any] = []
    modules = () if network is None else network.modules()
    heads = [each for each in modules if getattr(each, "out_features", 0) == len(info.labels)]
    hooks = [head.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0])) for head in heads]
    rows: list[NDArray[np.float32]] = []
    try:
        for item in items:
            run([item])
            # A decoder's head is given every position, and the last one is the text's.
            rows += [each.reshape(-1, each.shape[-1])[-1].float().cpu().numpy() for each in given[-1:]]
            given.clear()
    finally:
        for hook in hooks:
            hook.remove()
    return any(not np.array_equal(row, rows[0]) for row in rows)


def _difference(info: ModelInfo, alone: NDArray[np.float32], together: NDArray[np.float32]) -> str:
    """Return "" if both answers agree as closely as the number format allows."""
    scale = max(float(np.abs(alone).max()), SMALLEST_SCALE)
    tolerance = FORMATS[info.dtype].tolerance * scale
    worst = float(np.abs(alone - together).max())
    if worst <= tolerance:
        return ""
    return (
        "answers an input differently beside others, or a second time: a logit is off by "
        f"{worst:.3g}, more than {tolerance:.2g} ({info.dtype}); Fewshard cannot serve a network that draws "
        "at random, or whose inputs are not independent"
    )


def _told(batch: Sequence[Item]) -> str:
    tokens = [f" of {item.num_tokens} tokens" if item.num_tokens else "" for item in batch]
    return f"an input{tokens[0]}" if len(batch) == 1 else f"{len(batch)} inputs in one batch"
