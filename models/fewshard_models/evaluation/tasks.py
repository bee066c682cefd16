"""The held-out sets that classifiers are judged on, by task; called by `evaluate` and `judge`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fewshard_models.checkpoint import Checkpoint
from fewshard_models.classifier import Inputs
from fewshard_models.data.cifar10 import CLASSES, load_cifar10
from fewshard_models.data.sst2 import LABELS, load_sst2
from fewshard_models.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class HeldOut:
    """`inputs`: N texts, or images uint8 [N, 32, 32, 3]; `labels` int64 [N], indices into `names`."""

    dataset: str
    inputs: Inputs
    labels: NDArray[np.int64]
    names: tuple[str, ...]


def held_out(task: str, limit: int | None = None) -> HeldOut:
    """SST-2's dev set for "text", CIFAR-10's test set for "image"; the first `limit` rows."""
    if task == "text":
        texts, text_labels = load_sst2("dev")
        return HeldOut("SST-2 dev", texts[:limit], np.array(text_labels[:limit]), LABELS)
    images, labels = load_cifar10("test")
    return HeldOut("CIFAR-10 test", images[:limit], labels[:limit], CLASSES)


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
