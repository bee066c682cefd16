"""Runs one plan without Locust's command or web page; `__main__` calls it in a process of its own.

Importing this imports Locust, which patches the whole process: others call `fewshard_loadtest.run_headless`.
"""

import time
from typing import Any

import gevent
from locust.env import Environment

from fewshard_loadtest.measure import Plan, Result, Sample, summarise
from fewshard_loadtest.proctree import cpu_seconds
from fewshard_loadtest.users import NETWORK_TIMEOUT_S, prepare


def run_here(plan: Plan) -> Result:
    """Start all users at once, run for the warm-up and the duration, and wait for the last answers."""
    user = prepare(plan)
    environment = Environment(user_classes=[user], host=plan.host, stop_timeout=NETWORK_TIMEOUT_S + 5)
    samples = _record(environment)
    runner = environment.create_local_runner()
    runner.start(plan.num_users, spawn_rate=plan.num_users)
    gevent.sleep(plan.warmup_s)
    begun_at, cpu_s, server_s = time.time(), time.process_time(), cpu_seconds(plan.server_pid)
    gevent.sleep(max(begun_at + plan.duration_s - time.time(), 0.0))
    generator_cpu = (time.process_time() - cpu_s) / plan.duration_s
    server_cpu_s = cpu_seconds(plan.server_pid) - server_s if plan.server_pid else None
    runner.quit()
    return summarise(plan, samples, begun_at, generator_cpu, server_cpu_s)


def _record(environment: Environment) -> list[Sample]:
    """Locust's own statistics round to whole milliseconds and two digits; these do not."""
    samples: list[Sample] = []

    def on_request(
        start_time: float, response_time: float, exception: BaseException | None, **_: Any
    ) -> None:
        error = None if exception is None else f"{type(exception).__name__}: {exception}"
        samples.append(Sample(start_time, response_time, error))

    environment.events.request.add_listener(on_request)
    return samples
