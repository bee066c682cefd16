"""What classifiers of each task are evaluated on: held-out set, slices, other domain, corruptions."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewshard_models.checkpoint import Checkpoint
from fewshard_models.data.cifar10 import CLASSES, load_cifar10
from fewshard_models.data.sst2 import LABELS, load_sst2
from fewshard_models.errors import CheckpointError
from fewshard_models.evaluation import corruptions
from fewshard_models.evaluation.slices import Rows, text_slices

Inputs = Sequence[Any] | NDArray[Any]
"""Texts, or images uint8 [H, W, 3] in a list or an array."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """`inputs`: N texts, or images uint8 [N, 32, 32, 3]; `labels` int64 [N], indices into `names`."""

    dataset: str
    inputs: Inputs
    labels: NDArray[np.int64]
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EvaluationTask:
    """What belongs to one task.

    held_out: reads the first rows of the held-out set, or all for None.
    slices: the rows of each part of the inputs that is looked at by itself.
    corrupt: the inputs under one kind of corruption and severity, 1 to 3.
    corruption_kinds: the kinds there are.
    has_reviews: whether the review sentences of other domains are of this task.
    """

    held_out: Callable[[int | None], HeldOut]
    slices: Callable[[Any], dict[str, Rows]]
    corrupt: Callable[[Any, str, int], Any]
    corruption_kinds: Iterable[str]
    has_reviews: bool = False


def evaluation_task(task: str) -> EvaluationTask:
    """The task of that name. Raises CheckpointError where Fewshard has no data for it."""
    if task not in _TASKS:
        raise CheckpointError(f"there is no data to evaluate {task!r} on; there is for {', '.join(_TASKS)}")
    return _TASKS[task]


def held_out(task: str, limit: int | None = None) -> HeldOut:
    """The task's held-out set, or its first `limit` rows. Raises CheckpointError where there is none."""
    return evaluation_task(task).held_out(limit)


def _sst2(limit: int | None) -> HeldOut:
    texts, labels = load_sst2("dev")
    return HeldOut("SST-2 dev", texts[:limit], np.array(labels[:limit]), LABELS)


def _cifar10(limit: int | None) -> HeldOut:
    images, labels = load_cifar10("test")
    return HeldOut("CIFAR-10 test", images[:limit], labels[:limit], CLASSES)


_TASKS = {
    "text": EvaluationTask(
        _sst2, text_slices, corruptions.corrupt_texts, corruptions.TEXT_KINDS, has_reviews=True
    ),
    "image": EvaluationTask(_cifar10, lambda _: {}, corruptions.corrupt_images, corruptions.IMAGE_KINDS),
}


def label_order(checkpoint: Checkpoint, names: Sequence[str]) -> list[int]:
    """For each of the task's classes, the checkpoint's output that stands for it.

    By name where the checkpoint's labels have these names (case aside), else in their own order.
    Raises CheckpointError where it has another number of labels.
    """
    own = [str(name).lower() for _, name in sorted(checkpoint.model.config.id2label.items())]
    if len(own) != len(names):
        raise CheckpointError(
            f"{checkpoint.directory} tells {len(own)} classes apart, the data has {len(names)} "
            f"({', '.join(names)}); it was trained for another task"
        )
    wanted = [name.lower() for name in names]
    return [own.index(name) for name in wanted] if sorted(own) == sorted(wanted) else list(range(len(own)))
