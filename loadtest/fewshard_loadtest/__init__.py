"""Fewshard's load generator. It reaches servers only over the network and imports none of their code."""

from fewshard_loadtest.arrivals import Stage
from fewshard_loadtest.errors import LoadTestError, ScenarioError
from fewshard_loadtest.measure import Plan, Result
from fewshard_loadtest.run import run_headless, run_recorded

__all__ = ["LoadTestError", "Plan", "Result", "ScenarioError", "Stage", "run_headless", "run_recorded"]
