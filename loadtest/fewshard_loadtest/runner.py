"""Runs a scenario: starts or joins a server, warms up, measures, and saves the results in a folder.

Called by `commands`, which writes the report and sets the exit code.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fewshard_core.urls import masked
from fewshard_loadtest.errors import LoadTestError, ScenarioError, ServerGone
from fewshard_loadtest.generator_calibration import generator_ceiling
from fewshard_loadtest.measure import Plan
from fewshard_loadtest.payloads import Payload, load
from fewshard_loadtest.peers.machine import machine
from fewshard_loadtest.peers.processes import serving
from fewshard_loadtest.results_store import Run
from fewshard_loadtest.run import run_headless
from fewshard_loadtest.scenario import Scenario
from fewshard_loadtest.server_client import Server
from fewshard_loadtest.sweep import Say, ScenarioRunner, truth_of

PACKAGES = ("fewshard", "torch", "transformers", "ray", "locust")
WARMUP_USERS = 4
MIN_WARMUP_S = 0.5


@dataclass(frozen=True, slots=True)
class Target:
    """A server that is ready.

    url: base URL.
    pid: process ID; 0 if it is on another machine or unknown.
    is_alive: returns whether the server's process still runs.
    """

    url: str
    pid: int
    is_alive: Any


def conduct(scenario: Scenario, folder: Path, command: str, say: Say) -> Run:
    """Run the scenario and return the finished `Run`. One that is cut short is saved, with `partial` set.

    Raises `LoadTestError` if nothing could be measured: no server, a model that is not served, no payload.
    """
    if (folder / "run.json").exists():
        raise ScenarioError(f"{folder} holds a load test already; name another folder with --out")
    payloads = {task: load(name, scenario.seed) for task, name in scenario.payload if name}
    folder.mkdir(parents=True, exist_ok=True)
    fields = scenario.model_dump(mode="json")
    fields["server"]["url"] = masked(scenario.server.url or "") or None
    run = Run(fields, command, machine(PACKAGES))
    try:
        with _target(scenario, folder, say) as target:
            campaign = _campaign(scenario, folder, run, target, payloads, say)
            _warm_up(campaign)
            if scenario.calibrate:
                run.generator_ceiling = generator_ceiling(campaign)
            campaign.carry_out()
    except KeyboardInterrupt:
        run.partial = "interrupted"
    except ServerGone as gone:
        run.partial = str(gone)
    run.save(folder)
    return run


@contextmanager
def _target(scenario: Scenario, folder: Path, say: Say) -> Iterator[Target]:
    part = scenario.server
    if part.url is not None:
        say(f"joining {masked(part.url)}")
        yield Target(part.url, part.pid, lambda: True)
        return
    url = f"http://127.0.0.1:{part.port}"
    command = [str(Path(sys.executable).parent / "fewshard"), "serve", "--port", str(part.port)]
    command += ["--grpc-port", str(part.grpc_port), "--models", ",".join(scenario.models)]
    command += [str(part.config)] if part.config else []
    say(f"starting a server at {url}")
    with serving(command, f"{url}/v2/health/ready", folder / "server.log", dict(os.environ)) as process:
        yield Target(url, process.pid, lambda: process.poll() is None)


def _campaign(
    scenario: Scenario, folder: Path, run: Run, target: Target, payloads: dict[str, Payload], say: Say
) -> ScenarioRunner:
    server = Server(target.url)
    run.models = {model: _without_golden(server.config_of(model)) for model in scenario.models}
    tasks = {model: str(config["task"]) for model, config in run.models.items()}
    for model, task in tasks.items():
        if task not in payloads:
            raise ScenarioError(f"{model} is of task {task!r}; payloads are there for {', '.join(payloads)}")
    run.truth = {task: truth_of(payloads[task]) for task in dict.fromkeys(tasks.values())}
    run.server = {"url": masked(target.url), "started_here": scenario.server.url is None}
    host = urlsplit(target.url).hostname or "127.0.0.1"
    return ScenarioRunner(
        scenario=scenario,
        server=server,
        run=run,
        folder=folder,
        pid=target.pid,
        grpc_target=f"{host}:{scenario.server.grpc_port}",
        tasks=tasks,
        is_alive=target.is_alive,
        say=say,
    )


def _without_golden(config: dict[str, Any]) -> dict[str, Any]:
    card = {key: value for key, value in config.get("card", {}).items() if key != "golden"}
    return {**config, "card": card}


def _warm_up(campaign: ScenarioRunner) -> None:
    """Send requests to every model, so that no first run pays for initial allocations."""
    for model in campaign.scenario.models:
        plan = Plan(
            campaign.server.url,
            model,
            payload=getattr(campaign.scenario.payload, campaign.tasks[model]),
            num_users=WARMUP_USERS,
            duration_s=max(campaign.scenario.warmup_s, MIN_WARMUP_S),
            warmup_s=0.0,
        )
        result = run_headless(plan)
        if result.p50_ms is None:
            error = next(iter(result.errors), "no answer came")
            raise LoadTestError(f"{model} answers nothing: {error}")
