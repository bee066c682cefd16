"""Image classifiers: the residual CNN for small images and its preprocessing."""

from fewshard_models.image.configuration import FewshardImageConfig
from fewshard_models.image.modeling import FewshardImageForImageClassification

__all__ = ["FewshardImageConfig", "FewshardImageForImageClassification"]
