"""Admission, queueing and batching of requests, without any need of Ray, HTTP or torch."""

from fewshard_serve.engine.engine import Engine, ModelHandle
from fewshard_serve.engine.settings import AdmissionSettings, BatchingSettings, EngineSettings

__all__ = ["AdmissionSettings", "BatchingSettings", "Engine", "EngineSettings", "ModelHandle"]
