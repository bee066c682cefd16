"""Smaller dense students cut from a trained encoder: fewer layers and units, a trimmed vocabulary.

`trim_vocabulary` keeps the WordPiece pieces that the training texts use most, and `shrink` makes the student.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import BertTokenizer, PreTrainedTokenizerBase

from fewshard_models.sparsify.observers import Text, ffn_units, importance
from fewshard_models.text import FewshardTextConfig


@dataclass(frozen=True, slots=True)
class TrimmedVocabulary:
    """A reduced vocabulary.

    tokenizer: tokenizer of the reduced vocabulary.
    kept: for each of its pieces, the id in the full vocabulary.
    counts: number of uses of each piece.
    """

    tokenizer: PreTrainedTokenizerBase
    kept: Tensor
    counts: Tensor


def trim_vocabulary(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], size: int) -> TrimmedVocabulary:
    """Keep the `size` most useful pieces for `texts`, including every single ASCII character.

    Words that lost their piece split into shorter pieces, so every text can still be encoded.
    """
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    uses = Counter(piece for ids in tokenizer(list(texts))["input_ids"] for piece in ids)
    special = set(tokenizer.all_special_ids)
    single = {
        id_ for piece, id_ in vocabulary.items() if len(piece.removeprefix("##")) == 1 and piece.isascii()
    }
    # Ids of BERT's vocabulary increase with rarity, which breaks ties among unused pieces.
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


def shrink(
    source: Text,
    sample: Sequence[Sequence[int]],
    layers: Sequence[int] | None = None,
    intermediate_size: int | None = None,
    vocabulary: TrimmedVocabulary | None = None,
    embedding_size: int | None = None,
) -> Text:
    """A student with some of the source's layers and feed-forward units.

    layers: layers to keep; None keeps all.
    intermediate_size: units to keep in each layer, the most important on the tokenised `sample`; None: all.
    vocabulary: the vocabulary to reduce the embeddings to. With one, they are factorised to
        `embedding_size`, positions are cut to 128, and the head is new and has no pooler.
    """
    layers = range(source.config.num_hidden_layers) if layers is None else layers
    width = intermediate_size or source.config.intermediate_size
    fields: dict[str, Any] = {"num_hidden_layers": len(layers), "intermediate_size": width}
    if vocabulary is not None:
        fields |= {"vocab_size": len(vocabulary.kept), "embedding_size": embedding_size, "pooler_act": None}
        fields |= {"max_position_embeddings": 128, "type_vocab_size": 0}
    student = Text(FewshardTextConfig(**{**source.config.to_dict(), **fields}))
    with torch.no_grad():
        if vocabulary is None:
            student.load_state_dict(
                {key: value for key, value in source.state_dict().items() if not key.startswith("layers.")},
                strict=False,
            )
        else:
            _copy_embeddings(source, student, vocabulary)
        _copy_layers(source, student, layers, sample)
    return student


def _copy_layers(source: Text, student: Text, layers: Sequence[int], sample: Sequence[Sequence[int]]) -> None:
    width = student.config.intermediate_size
    if width == source.config.intermediate_size:
        for target, layer in zip(student.layers, layers, strict=True):
            target.load_state_dict(source.layers[layer].state_dict())
        return
    units = ffn_units(source, sample)
    for target, layer in zip(student.layers, layers, strict=True):
        weights = source.layers[layer].state_dict()
        target.load_state_dict(_with_units(weights, units[layer], width))


def _with_units(weights: dict[str, Tensor], units: Tensor, width: int) -> dict[str, Tensor]:
    kept = importance(units, weights["ffn.down.weight"]).topk(width).indices
    return {
        **weights,
        "ffn.up.weight": weights["ffn.up.weight"][kept],
        "ffn.up.bias": weights["ffn.up.bias"][kept],
        "ffn.down.weight": weights["ffn.down.weight"][:, kept],
    }


def _copy_embeddings(source: Text, student: Text, vocabulary: TrimmedVocabulary) -> None:
    old, new = source.embeddings, student.embeddings
    assert new.word_projection is not None
    factors, basis = factorise(
        old.word_embeddings.weight[vocabulary.kept], vocabulary.counts, new.word_projection.in_features
    )
    new.word_embeddings.weight.copy_(factors)
    new.word_projection.weight.copy_(basis)
    positions = old.position_embeddings.weight[: new.position_embeddings.num_embeddings]
    if old.token_type_embeddings is not None:
        positions = positions + old.token_type_embeddings.weight[0]
    new.position_embeddings.weight.copy_(positions)
    new.norm.load_state_dict(old.norm.state_dict())
