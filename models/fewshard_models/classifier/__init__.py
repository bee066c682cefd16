"""Classifiers: the interface, and the classes that run checkpoints, chosen by architecture.

`load` in this package loads one. Importing the package loads neither torch nor transformers.
"""

from fewshard_models.classifier.base import Classifier, Predictions, Preprocessor, Value

__all__ = ["Classifier", "Predictions", "Preprocessor", "Value"]
