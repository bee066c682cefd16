"""Admission, queue, batches: plain classes that need neither Ray nor HTTP nor torch."""

from fewshard_serve.engine.engine import Engine, ModelHandle
from fewshard_serve.engine.settings import AdmissionSettings, BatchingSettings, EngineSettings

__all__ = ["AdmissionSettings", "BatchingSettings", "Engine", "EngineSettings", "ModelHandle"]
