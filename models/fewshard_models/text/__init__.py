"""Text classifiers: the packed encoder, dense or MoE."""

from fewshard_models.text.configuration import FewshardTextConfig
from fewshard_models.text.modeling import FewshardTextForSequenceClassification, PackedOutput
from fewshard_models.text.observers import watched_experts
from fewshard_models.text.packing import PackedTokens, pack, pack_padded

__all__ = [
    "FewshardTextConfig",
    "FewshardTextForSequenceClassification",
    "PackedOutput",
    "PackedTokens",
    "pack",
    "pack_padded",
    "watched_experts",
]
