"""Every metric of the server, and the only package that knows Prometheus; used by hosts and gateway."""

from fewshard_serve.metrics.families import BY_NAME, CONFIDENCES, FAMILIES, SECONDS, Family, Kind
from fewshard_serve.metrics.recorder import Metrics
from fewshard_serve.metrics.settings import CostSettings, MetricsSettings
from fewshard_serve.metrics.sources import ModelSource
from fewshard_serve.metrics.text import cluster_text, merge_expositions

__all__ = [
    "BY_NAME",
    "CONFIDENCES",
    "FAMILIES",
    "SECONDS",
    "CostSettings",
    "Family",
    "Kind",
    "Metrics",
    "MetricsSettings",
    "ModelSource",
    "cluster_text",
    "merge_expositions",
]
