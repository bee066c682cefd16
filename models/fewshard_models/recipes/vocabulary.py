"""A smaller WordPiece vocabulary for a task: the pieces its training texts use most."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import BertTokenizer, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class TrimmedVocabulary:
    """`kept[i]` is the id in the full vocabulary of the trimmed vocabulary's piece i; `counts` its uses."""

    tokenizer: PreTrainedTokenizerBase
    kept: Tensor
    counts: Tensor


def trim_vocabulary(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], size: int) -> TrimmedVocabulary:
    """Keep the `size` pieces that serve `texts` best, every single ASCII character among them.

    Words that lost their piece split into shorter ones, so every text still encodes.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    uses = Counter(piece for ids in tokenizer(list(texts))["input_ids"] for piece in ids)
    special = set(tokenizer.all_special_ids)
    single = {
        id_ for piece, id_ in vocabulary.items() if len(piece.removeprefix("##")) == 1 and piece.isascii()
    }
    # Ids of BERT's vocabulary grow with rarity, which breaks ties among unused pieces.
    ranked = sorted(
        vocabulary.values(), key=lambda id_: (id_ not in special, id_ not in single, -uses[id_], id_)
    )
    kept = sorted(ranked[:size])
    pieces = {id_: piece for piece, id_ in vocabulary.items()}
    trimmed = BertTokenizer(vocab={pieces[id_]: new for new, id_ in enumerate(kept)}, do_lower_case=True)
    return TrimmedVocabulary(trimmed, torch.tensor(kept), torch.tensor([uses[id_] for id_ in kept]))


def factorise(embeddings: Tensor, counts: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best rank-`rank` factors [V, rank] and [H, rank] of `embeddings` [V, H], rows weighted by use."""
    weights = (counts.float() + 1).sqrt()[:, None]
    _, _, v = torch.linalg.svd(weights * embeddings, full_matrices=False)
    basis = v[:rank].T
    return embeddings @ basis, basis
