"""Text classifiers: the packed encoder, dense or MoE.

Importing this package registers it with transformers' Auto classes.
"""

from transformers import AutoConfig, AutoModelForSequenceClassification

from fewshard_models.text.configuration import FewshardTextConfig
from fewshard_models.text.modeling import FewshardTextForSequenceClassification, PackedOutput
from fewshard_models.text.observers import watched_experts
from fewshard_models.text.packing import PackedTokens, pack, pack_padded

AutoConfig.register("fewshard_text", FewshardTextConfig, exist_ok=True)
AutoModelForSequenceClassification.register(
    FewshardTextConfig, FewshardTextForSequenceClassification, exist_ok=True
)

__all__ = [
    "FewshardTextConfig",
    "FewshardTextForSequenceClassification",
    "PackedOutput",
    "PackedTokens",
    "pack",
    "pack_padded",
    "watched_experts",
]
