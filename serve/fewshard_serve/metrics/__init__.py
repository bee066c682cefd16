"""All metrics of the server, in Prometheus' format; the replicas and the gateway use this package."""

from fewshard_serve.metrics.definitions import BY_NAME, CONFIDENCES, FAMILIES, SECONDS, Family, Kind
from fewshard_serve.metrics.exposition import cluster_text, merge_expositions
from fewshard_serve.metrics.recorder import Metrics
from fewshard_serve.metrics.settings import CostSettings, MetricsSettings
from fewshard_serve.metrics.sources import ModelSource

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
