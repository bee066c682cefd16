"""How callers share what a process has; the engine and the transports use it. It knows neither."""

from fewshard_serve.fairness.budget import FAIR_ALPHA, Budget, Share
from fewshard_serve.fairness.fair_queue import URGENT_WEIGHT, FairQueue
from fewshard_serve.fairness.turns import Turns

__all__ = ["FAIR_ALPHA", "URGENT_WEIGHT", "Budget", "FairQueue", "Share", "Turns"]
