"""Batches of tokenised texts for training, and unlabelled texts for distillation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fewshard_models.devices import training_device
from fewshard_models.text import PackedTokens, pack

IGNORED = -100
"""Label of an unlabelled text; torch's cross-entropy ignores it."""
_MAX_JOINED_WORDS = 32
_JOINTS = (" , ", " , but ", " and ", " -- ", " ; ")


def joined_texts(texts: Sequence[str], count: int) -> list[str]:
    """`count` unlabelled texts for distillation, each of two of `texts` joined, at most 32 words long.

    SST-2's training texts are mostly short phrases (median 7 words), its dev texts sentences (19). The result
    does not depend on the training seed.
    """
    rng = np.random.default_rng((0, 7))
    joined: list[str] = []
    while len(joined) < count:
        first, second = (texts[row] for row in rng.integers(0, len(texts), 2))
        text = f"{first}{_JOINTS[rng.integers(len(_JOINTS))]}{second}"
        if len(text.split()) <= _MAX_JOINED_WORDS:
            joined.append(text)
    return joined


@dataclass(frozen=True, slots=True)
class TextBatch:
    """A batch.

    packed: the packed tokens.
    labels: int64 [N].
    rows: int64 [N] on the CPU, indices of the texts in the training set.
    """

    packed: PackedTokens
    labels: Tensor
    rows: Tensor


@dataclass(frozen=True, slots=True)
class TextBatches:
    """Batches of equal length in random order, shuffled by (seed, epoch); the rest forms a few mixed batches.

    Equal lengths need one attention call per batch and give few distinct row counts. oneDNN recompiles its
    products for each count that it has not seen lately, which took a third of a step (docs/log.md).
    """

    token_ids: list[list[int]]
    labels: list[int]
    batch_size: int
    seed: int
    device: torch.device = field(default_factory=training_device)
    lengths: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", np.array([len(ids) for ids in self.token_ids]))

    def steps_per_epoch(self) -> int:
        counts = np.bincount(self.lengths)
        left_over = (counts % self.batch_size).sum()
        return int((counts // self.batch_size).sum() - left_over // -self.batch_size)

    def epoch(self, number: int) -> Iterator[TextBatch]:
        rng = np.random.default_rng((self.seed, number))
        order = rng.permutation(len(self.token_ids))
        order = order[np.argsort(self.lengths[order], kind="stable")]
        starts = np.flatnonzero(np.diff(self.lengths[order], prepend=-1))
        batches, left_over = [], []
        for rows in np.split(order, starts[1:]):
            whole = len(rows) - len(rows) % self.batch_size
            batches += list(rows[:whole].reshape(-1, self.batch_size))
            left_over.append(rows[whole:])
        rest = np.concatenate(left_over)
        batches += [rest[start : start + self.batch_size] for start in range(0, len(rest), self.batch_size)]
        for index in rng.permutation(len(batches)):
            yield self._batch(batches[index])

    def _batch(self, rows: np.ndarray) -> TextBatch:
        packed = pack([self.token_ids[row] for row in rows], None, self.device)
        labels = torch.tensor([self.labels[row] for row in rows], device=self.device)
        return TextBatch(packed, labels, torch.from_numpy(rows))
