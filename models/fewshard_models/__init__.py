"""Fewshard's models: architectures, checkpoints and recipes.

Importing this package registers its architectures with transformers' Auto classes.
"""

from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification

from fewshard_models.image import FewshardImageConfig, FewshardImageForImageClassification
from fewshard_models.text import FewshardTextConfig, FewshardTextForSequenceClassification

AutoConfig.register("fewshard_text", FewshardTextConfig, exist_ok=True)
AutoModelForSequenceClassification.register(
    FewshardTextConfig, FewshardTextForSequenceClassification, exist_ok=True
)
AutoConfig.register("fewshard_image", FewshardImageConfig, exist_ok=True)
AutoModelForImageClassification.register(
    FewshardImageConfig, FewshardImageForImageClassification, exist_ok=True
)

__all__ = [
    "FewshardImageConfig",
    "FewshardImageForImageClassification",
    "FewshardTextConfig",
    "FewshardTextForSequenceClassification",
]
