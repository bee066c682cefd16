"""Admission, queueing and batching of requests, without any need of Ray, HTTP or torch."""

from fewshard_serve.engine.engine import Engine
from fewshard_serve.engine.model_handle import ModelHandle
from fewshard_serve.engine.settings import AdmissionSettings, BatchingSettings, EngineSettings

__all__ = ["AdmissionSettings", "BatchingSettings", "Engine", "EngineSettings", "ModelHandle"]
