"""The comparisons by task. `fewshard conformance` runs them, and so do the tests."""

from collections.abc import Mapping

from fewshard_models.conformance import image, text
from fewshard_models.conformance.matrix import Compare

COMPARISONS: dict[str, tuple[Mapping[str, str], Compare]] = {
    "text": (text.ARCHITECTURES, text.compare),
    "image": (image.ARCHITECTURES, image.compare),
}
"""The class of each model type of a task, and the function that compares one."""
