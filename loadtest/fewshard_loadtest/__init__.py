"""Fewshard's load generator: speaks to servers over the network alone and imports nothing of theirs."""

from fewshard_loadtest.measure import SCENARIOS, Plan, Result, Scenario
from fewshard_loadtest.run import LoadTestError, run_headless

__all__ = ["SCENARIOS", "LoadTestError", "Plan", "Result", "Scenario", "run_headless"]
