"""Runs a plan from any Python process, as benchmarks and tests do: Locust gets a process of its own."""

import json
import subprocess
import sys
from dataclasses import fields

from fewshard_loadtest.measure import Plan, Result

_OPTION_OF = {"num_users": "users", "duration_s": "duration", "warmup_s": "warmup", "num_items": "items"}


class LoadTestError(RuntimeError):
    """The generator itself failed; a server that fails is a result, not an error."""


def run_headless(plan: Plan) -> Result:
    """Raises `LoadTestError` with the generator's own words where it prints no result."""
    command = [sys.executable, "-m", "fewshard_loadtest", *_options(plan)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return Result.from_dict(json.loads(done.stdout))
    except ValueError:
        raise LoadTestError(f"exit code {done.returncode}: {done.stderr.strip()}") from None


def _options(plan: Plan) -> list[str]:
    names = {field.name: _OPTION_OF.get(field.name, field.name).replace("_", "-") for field in fields(plan)}
    return [f"--{option}={getattr(plan, name)}" for name, option in names.items()]
