"""Fewshard's models: architectures, checkpoints, recipes, and classifiers to run them.

    import fewshard_models
    classify = fewshard_models.load("zoo:sst2-moe")
    classify(["a warm and funny film", "two hours of noise"]).labels

Importing this package loads neither torch nor transformers; the first use of a name loads what it needs.
Our architectures are registered with transformers' Auto classes as soon as these are imported.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fewshard_models.auto_classes import register_when_imported

if TYPE_CHECKING:
    from fewshard_models.classifier.base import Classifier, Predictions
    from fewshard_models.classifier.load import load
    from fewshard_models.image import FewshardImageConfig, FewshardImageForImageClassification
    from fewshard_models.text import FewshardTextConfig, FewshardTextForSequenceClassification

__all__ = [
    "Classifier",
    "FewshardImageConfig",
    "FewshardImageForImageClassification",
    "FewshardTextConfig",
    "FewshardTextForSequenceClassification",
    "Predictions",
    "load",
]

_MODULES = {
    "Classifier": "fewshard_models.classifier.base",
    "FewshardImageConfig": "fewshard_models.image",
    "FewshardImageForImageClassification": "fewshard_models.image",
    "FewshardTextConfig": "fewshard_models.text",
    "FewshardTextForSequenceClassification": "fewshard_models.text",
    "Predictions": "fewshard_models.classifier.base",
    "load": "fewshard_models.classifier.load",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


register_when_imported()
