"""Loads a checkpoint as the server would run it here, so that what is judged is what is served."""

from pathlib import Path

from fewshard_models.checkpoint import load_checkpoint
from fewshard_models.classifier import Classifier, classifier
from fewshard_models.devices import DTYPES, choose_device, choose_dtype
from fewshard_models.image import FewshardImageForImageClassification
from fewshard_models.text import FewshardTextForSequenceClassification


def load_for_serving(directory: Path, device: str = "auto", dtype: str = "auto") -> Classifier:
    """In the dtype `auto` means here; experts packed, convolutions fused. Raises CheckpointError."""
    chosen = choose_device(device).name
    checkpoint = load_checkpoint(directory, DTYPES[choose_dtype(dtype, chosen).name], chosen)
    found = classifier(checkpoint)
    if isinstance(found.model, FewshardTextForSequenceClassification | FewshardImageForImageClassification):
        found.model.prepare_for_inference()
    return found


def dtype_name(device: str = "auto") -> str:
    """ "fp32", "bf16" or "fp16": what `load_for_serving` takes."""
    return choose_dtype(device=choose_device(device).name).name
