"""Image classifiers: the residual CNN for small images and its preprocessing.

Importing this package registers it with transformers' Auto classes.
"""

from transformers import AutoConfig, AutoModelForImageClassification

from fewshard_models.image.configuration import FewshardImageConfig
from fewshard_models.image.modeling import FewshardImageForImageClassification

AutoConfig.register("fewshard_image", FewshardImageConfig, exist_ok=True)
AutoModelForImageClassification.register(
    FewshardImageConfig, FewshardImageForImageClassification, exist_ok=True
)

__all__ = ["FewshardImageConfig", "FewshardImageForImageClassification"]
