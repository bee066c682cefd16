"""Conversion of BERT, DistilBERT and RoBERTa checkpoints to our packed encoder."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from fewshard_models.errors import CheckpointError
from fewshard_models.text.configuration import FewshardTextConfig

_BERT_KEYS = [
    (r"^(?:bert|roberta)\.", ""),
    (r"LayerNorm\.gamma$", "LayerNorm.weight"),
    (r"LayerNorm\.beta$", "LayerNorm.bias"),
    (r"^embeddings\.LayerNorm\.", "embeddings.norm."),
    (r"^encoder\.layer\.", "layers."),
    (r"\.attention\.self\.(query|key|value)\.", r".attention.\1."),
    (r"\.attention\.output\.dense\.", ".attention.output."),
    (r"\.attention\.output\.LayerNorm\.", ".attention_norm."),
    (r"\.intermediate\.dense\.", ".ffn.up."),
    (r"\.(\d+)\.output\.dense\.", r".\1.ffn.down."),
    (r"\.(\d+)\.output\.LayerNorm\.", r".\1.ffn_norm."),
    (r"^pooler\.dense\.", "pooler."),
    (r"^classifier\.dense\.", "pooler."),
    (r"^classifier\.out_proj\.", "classifier."),
]
_DISTILBERT_KEYS = [
    (r"^distilbert\.", ""),
    (r"^embeddings\.LayerNorm\.", "embeddings.norm."),
    (r"^transformer\.layer\.", "layers."),
    (r"\.attention\.q_lin\.", ".attention.query."),
    (r"\.attention\.k_lin\.", ".attention.key."),
    (r"\.attention\.v_lin\.", ".attention.value."),
    (r"\.attention\.out_lin\.", ".attention.output."),
    (r"\.sa_layer_norm\.", ".attention_norm."),
    (r"\.ffn\.lin1\.", ".ffn.up."),
    (r"\.ffn\.lin2\.", ".ffn.down."),
    (r"\.output_layer_norm\.", ".ffn_norm."),
    (r"^pre_classifier\.", "pooler."),
]
_IGNORED = re.compile(r"position_ids$|^cls\.|^lm_head\.|^vocab_|embeddings\.token_type_ids$")
_IGNORED_BY_ROBERTA = re.compile(rf"{_IGNORED.pattern}|^(?:roberta\.)?pooler\.")

FAMILIES = ("bert", "distilbert", "roberta", "xlm-roberta", "camembert")
_BEHIND_PADDING = ("roberta", "xlm-roberta", "camembert")
"""Families that number positions from behind the padding id."""
ARCHITECTURES = tuple(
    f"{name}ForSequenceClassification"
    for name in ("Bert", "DistilBert", "Roberta", "XLMRoberta", "Camembert")
)
"""The names that the classifiers of `FAMILIES` have in config.json."""


def can_convert(config: PreTrainedConfig) -> bool:
    """Whether our encoder supports this configuration."""
    if config.model_type not in FAMILIES or getattr(config, "is_decoder", False):
        return False
    if config.pad_token_id is None and config.model_type in _BEHIND_PADDING:
        return False
    return getattr(config, "position_embedding_type", "absolute") == "absolute"


def convert_config(config: PreTrainedConfig) -> FewshardTextConfig:
    """Our configuration for a checkpoint of one of `FAMILIES`, which `can_convert`."""
    fields = _distilbert_fields(config) if config.model_type == "distilbert" else _bert_fields(config)
    return FewshardTextConfig(
        vocab_size=config.vocab_size,
        pad_token_id=config.pad_token_id,
        id2label=config.id2label,
        label2id=config.label2id,
        problem_type=config.problem_type,
        pads_unnumbered=config.model_type in _BEHIND_PADDING,
        **fields,
    )


def convert_weights(weights: Mapping[str, Tensor], config: PreTrainedConfig) -> dict[str, Tensor]:
    """Rename the keys of a state dict of one of `FAMILIES`, and join its query, key and value projections.

    Raises CheckpointError if a layer's projections are incomplete.
    """
    keys = _DISTILBERT_KEYS if config.model_type == "distilbert" else _BERT_KEYS
    # The head of RoBERTa does not use the encoder's own pooler, which many files still hold.
    ignored = _IGNORED if config.model_type in ("bert", "distilbert") else _IGNORED_BY_ROBERTA
    renamed = {_rename(key, keys): tensor for key, tensor in weights.items() if not ignored.search(key)}
    positions = "embeddings.position_embeddings.weight"
    if position_offset(config) and positions in renamed:
        renamed[positions] = renamed[positions][position_offset(config) :]
    return _join_qkv(renamed)


def _bert_fields(config: PreTrainedConfig) -> dict[str, Any]:
    return {
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "intermediate_size": config.intermediate_size,
        "hidden_act": config.hidden_act,
        "hidden_dropout_prob": config.hidden_dropout_prob,
        "max_position_embeddings": config.max_position_embeddings - position_offset(config),
        "type_vocab_size": config.type_vocab_size,
        "layer_norm_eps": config.layer_norm_eps,
        "pooler_act": "tanh",
    }


def _distilbert_fields(config: PreTrainedConfig) -> dict[str, Any]:
    return {
        "hidden_size": config.dim,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.hidden_dim,
        "hidden_act": config.activation,
        "hidden_dropout_prob": config.dropout,
        "max_position_embeddings": config.max_position_embeddings,
        "type_vocab_size": 0,
        "layer_norm_eps": 1e-12,
        "pooler_act": "relu",
    }


def position_offset(config: PreTrainedConfig) -> int:
    """RoBERTa counts positions from the padding id + 1; ours count from 0."""
    return config.pad_token_id + 1 if config.model_type in _BEHIND_PADDING else 0


def _rename(key: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _join_qkv(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    joined = {}
    for key, tensor in weights.items():
        if ".attention.query." in key:
            joined[key.replace(".query.", ".qkv.")] = torch.cat(_projections(weights, key))
        elif ".attention.key." not in key and ".attention.value." not in key:
            joined[key] = tensor
    return joined


def _projections(weights: dict[str, Tensor], query_key: str) -> list[Tensor]:
    keys = [query_key.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
    if missing := [key for key in keys if key not in weights]:
        raise CheckpointError(f"the weights lack {', '.join(missing)}; the checkpoint is incomplete")
    return [weights[key] for key in keys]
