"""Evaluation data of each task: held-out sets, slices, another domain, corruptions.

`accuracy`, `assessment` and `comparison` call it. A task is one line of `TASKS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewshard_models.checkpoint import Checkpoint
from fewshard_models.data.cifar10 import CLASSES, load_cifar10
from fewshard_models.data.ood import ReviewSentences, load_review_sentences, review_sentences_file
from fewshard_models.data.sst2 import LABELS, load_sst2
from fewshard_models.errors import CheckpointError, DataError
from fewshard_models.evaluation.corruptions import IMAGE_KINDS, TEXT_KINDS, corrupt_images, corrupt_texts
from fewshard_models.evaluation.slices import Rows, text_slices

Inputs = Sequence[Any] | NDArray[Any]
"""Texts, or images uint8 [H, W, 3] in a list or an array."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A held-out set.

    inputs: N texts, or images uint8 [N, 32, 32, 3].
    labels: int64 [N], indices into `names`.
    """

    dataset: str
    inputs: Inputs
    labels: NDArray[np.int64]
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EvaluatedTask:
    """The data of one task.

    held_out: returns the whole held-out set.
    corrupt: corrupts inputs by one kind of `corruptions` at a severity.
    slices: returns rows of inputs by property.
    other_domain: returns labelled items of another domain; None if there are none.
    """

    held_out: Callable[[], HeldOut]
    corrupt: Callable[[Any, str, int], Inputs]
    corruptions: tuple[str, ...]
    slices: Callable[[Sequence[Any]], Mapping[str, Rows]] = lambda _: {}
    other_domain: Callable[[], ReviewSentences | None] = lambda: None


def _sst2() -> HeldOut:
    texts, labels = load_sst2("dev")
    return HeldOut("SST-2 dev", texts, np.array(labels), LABELS)


def _cifar10() -> HeldOut:
    images, labels = load_cifar10("test")
    return HeldOut("CIFAR-10 test", images, labels, CLASSES)


def _reviews() -> ReviewSentences | None:
    """Return the review sentences; None if the data folder has none."""
    return load_review_sentences() if review_sentences_file().is_file() else None


TASKS: dict[str, EvaluatedTask] = {
    "text": EvaluatedTask(_sst2, corrupt_texts, tuple(TEXT_KINDS), text_slices, _reviews),
    "image": EvaluatedTask(_cifar10, corrupt_images, tuple(IMAGE_KINDS)),
}


def evaluated_task(name: str) -> EvaluatedTask:
    """Return a task. Raises DataError with the known tasks."""
    found = TASKS.get(name)
    if found is None:
        raise DataError(f"there is nothing to judge a model of task {name!r} on, only of {', '.join(TASKS)}")
    return found


def held_out(task: str, limit: int | None = None) -> HeldOut:
    """Return the first `limit` rows of SST-2's dev set for "text", CIFAR-10's test set for "image"."""
    whole = evaluated_task(task).held_out()
    return HeldOut(whole.dataset, whole.inputs[:limit], whole.labels[:limit], whole.names)


def label_order(checkpoint: Checkpoint, names: Sequence[str]) -> list[int]:
    """Return, for each class of the task, the index of the checkpoint's output for it.

    Matched by name (ignoring case) if the checkpoint's labels have these names, else by position. Raises
    CheckpointError if the numbers of labels differ.
    """
    own = [str(name).lower() for _, name in sorted(checkpoint.model.config.id2label.items())]
    if len(own) != len(names):
        raise CheckpointError(
            f"{checkpoint.directory} tells {len(own)} classes apart, the data has {len(names)} "
            f"({', '.join(names)}); it was trained for another task"
        )
    wanted = [name.lower() for name in names]
    return [own.index(name) for name in wanted] if sorted(own) == sorted(wanted) else list(range(len(own)))
