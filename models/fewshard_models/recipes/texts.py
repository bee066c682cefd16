"""Batches of tokenised texts for training, and the logits of a model over a whole list of texts."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fewshard_models.text import FewshardTextForSequenceClassification, PackedOutput, PackedTokens, pack

MAX_TOKENS = 128


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, with special tokens, truncated to 128."""
    return list(tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"])


@dataclass(frozen=True, slots=True)
class TextBatch:
    """A packed batch, its labels int64 [N], and the rows it was made of, int64 [N]."""

    packed: PackedTokens
    labels: Tensor
    rows: Tensor


@dataclass(frozen=True, slots=True)
class TextBatches:
    """Batches of similar length in random order, shuffled by (seed, epoch).

    Texts are shuffled, sorted by length within pools of `pool_size` batches, cut, and the batches shuffled
    again: few different lengths in a batch make few attention calls.
    """

    token_ids: list[list[int]]
    labels: list[int]
    batch_size: int
    seed: int
    pool_size: int = 50
    lengths: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", np.array([len(ids) for ids in self.token_ids]))

    def steps_per_epoch(self) -> int:
        return -(-len(self.token_ids) // self.batch_size)

    def epoch(self, number: int) -> Iterator[TextBatch]:
        rng = np.random.default_rng((self.seed, number))
        order = rng.permutation(len(self.token_ids))
        pool = self.pool_size * self.batch_size
        order = np.concatenate(
            [
                rows[np.argsort(self.lengths[rows], kind="stable")]
                for rows in (order[start : start + pool] for start in range(0, len(order), pool))
            ]
        )
        for index in rng.permutation(self.steps_per_epoch()):
            yield self._batch(order[index * self.batch_size : (index + 1) * self.batch_size])

    def _batch(self, rows: np.ndarray) -> TextBatch:
        rows = rows[np.argsort(self.lengths[rows], kind="stable")]
        packed = pack([self.token_ids[row] for row in rows], None, torch.device("cpu"))
        labels = torch.tensor([self.labels[row] for row in rows])
        return TextBatch(packed, labels, torch.from_numpy(rows))


def over_all(
    model: FewshardTextForSequenceClassification,
    token_ids: Sequence[Sequence[int]],
    of_batch: Callable[[PackedTokens, PackedOutput], Tensor],
    batch_size: int = 256,
) -> Tensor:
    """`of_batch` of every text [N, ...] in the given order; the model runs over length-sorted batches."""
    order = sorted(range(len(token_ids)), key=lambda row: len(token_ids[row]))
    device = next(model.parameters()).device
    parts = []
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            packed = pack([token_ids[row] for row in order[start : start + batch_size]], None, device)
            parts.append(of_batch(packed, model.forward_packed(packed)).cpu())
    results = torch.cat(parts)
    inverse = torch.empty(len(order), dtype=torch.int64)
    inverse[torch.tensor(order)] = torch.arange(len(order))
    return results[inverse]


def logits_of(model: FewshardTextForSequenceClassification, token_ids: Sequence[Sequence[int]]) -> Tensor:
    """fp32 logits [N, num_labels], in the order given."""
    return over_all(model, token_ids, lambda _, out: out.logits)
