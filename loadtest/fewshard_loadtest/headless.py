"""Runs one plan without Locust's command line or web page. `__main__` calls it in a process of its own.

Importing this module imports Locust, which monkey-patches the process; other code calls `run_headless`.
"""

import re
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event
from locust.env import Environment

from fewshard_loadtest.measure import Plan, Result, Sample, summarise
from fewshard_loadtest.resource_usage import cpu_seconds
from fewshard_loadtest.samples_file import record
from fewshard_loadtest.users import NETWORK_TIMEOUT_S, prepare

STOP_TIMEOUT_S = NETWORK_TIMEOUT_S + 5
CUT_STOP_TIMEOUT_S = 1.0


@dataclass
class Watched:
    """State of a run.

    samples: the samples so far.
    stopped: set by SIGTERM, which ends the run early and keeps the samples.
    """

    samples: list[Sample] = field(default_factory=list)
    stopped: Event = field(default_factory=Event)


def run_here(plan: Plan, samples_file: Path | None = None) -> Result:
    """Start all users at once, run for warm-up and duration, then wait for the last responses."""
    watched = Watched()
    gevent.signal_handler(signal.SIGTERM, watched.stopped.set)
    user = prepare(plan, reads_labels=samples_file is not None)
    environment = Environment(user_classes=[user], host=plan.host, stop_timeout=STOP_TIMEOUT_S)
    environment.events.request.add_listener(_listener(watched.samples))
    runner = environment.create_local_runner()
    runner.start(plan.num_users, spawn_rate=plan.num_users)
    watched.stopped.wait(plan.warmup_s)
    begun_at, cpu_s, server_s = time.time(), time.process_time(), cpu_seconds(plan.server_pid)
    watched.stopped.wait(max(plan.duration_s - (time.time() - begun_at), 0.0))
    measured_s = max(min(time.time() - begun_at, plan.duration_s), 1e-3)
    generator_cpu = (time.process_time() - cpu_s) / measured_s
    server_cpu_s = cpu_seconds(plan.server_pid) - server_s if plan.server_pid else None
    if watched.stopped.is_set():
        environment.stop_timeout = CUT_STOP_TIMEOUT_S
    runner.quit()
    if samples_file is not None:
        record(watched.samples, begun_at, measured_s).save(samples_file)
    return summarise(plan, watched.samples, begun_at, generator_cpu, server_cpu_s, measured_s)


def _listener(samples: list[Sample]) -> Any:
    """A listener with full precision; Locust's own statistics round to milliseconds and two digits."""

    def on_request(
        start_time: float,
        response_time: float,
        exception: BaseException | None,
        context: dict[str, Any],
        **_: Any,
    ) -> None:
        error = None if exception is None else _in_words(exception)
        samples.append(Sample(start_time, response_time, error, **context))

    return on_request


def _in_words(exception: BaseException) -> str:
    """Error text without the URL that Locust adds to a bad status, so that equal failures share a count."""
    status = re.search(r"code=(\d{3})", str(exception))
    return f"status {status[1]}" if status else f"{type(exception).__name__.lstrip('_')}: {exception}"
