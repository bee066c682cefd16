"""Fixtures of the load test's tests: servers of known service time, and a finished load test, made up."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewshard_loadtest.arrivals import Stage
from fewshard_loadtest.measure import Plan, Sample, summarise
from fewshard_loadtest.resource_usage import Usage
from fewshard_loadtest.results_store import LoadRun, Run
from fewshard_loadtest.samples_file import record
from fewshard_loadtest.scenario import Scenario
from fewshard_loadtest.server_client import Counters

PROGRAM = Path(__file__).parent / "simulated_server.py"
Start = Callable[[dict[str, dict[str, Any]]], str]


@pytest.fixture
def simulated() -> Iterator[Start]:
    """Call it with the models; it returns the server's URL."""
    started: list[subprocess.Popen[bytes]] = []

    def start(models: dict[str, dict[str, Any]]) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started.append(subprocess.Popen([sys.executable, str(PROGRAM), str(port), json.dumps(models)]))
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return f"http://127.0.0.1:{port}"
            time.sleep(0.05)
        raise AssertionError("the simulated server did not start")

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Forty labelled texts; the simulated server can tell the fine ones."""
    rows = [
        f"number {i} is {'fine' if i % 2 else 'bad'} {i * 7919},{'positive' if i % 2 else 'negative'}"
        for i in range(40)
    ]
    file = tmp_path / "texts.csv"
    file.write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return file


# Service time in ms, share of wrong answers, and MACs of the made-up models.
MADE_UP = {
    "sst2-dense": (8.0, 0.05, 100),
    "sst2-moe": (4.0, 0.08, 40),
    "cifar10-dense": (5.0, 0.10, 100),
    "cifar10-dst": (3.5, 0.12, 50),
}
NUM_MADE_UP_ITEMS = 200
LOADS: list[dict[str, Any]] = [
    {"kind": "closed", "users": [1, 16]},
    {"kind": "search"},
    {"kind": "spike", "base": 20, "peak": 80},
]


@pytest.fixture(scope="session")
def make_run() -> Callable[..., Run]:
    """Call it with a folder and, where wanted, `num_repeats` and `models`."""
    return made_up_run


def made_up_run(folder: Path, num_repeats: int = 3, models: Sequence[str] = tuple(MADE_UP)) -> Run:
    """A load test of these models as a run of the command leaves it in `folder`, from a fixed seed.

    Its waits are those of an M/M/1 queue, so that curves look as measured ones do.
    """
    fields = {
        "name": "made up",
        "models": list(models),
        "loads": LOADS,
        "repeats": num_repeats,
        "payload": {"text": "sst2", "image": "cifar10"},
        "price": {"machine": "c7i.large"},
        "slo": {"p99_ms": 150},
    }
    scenario = Scenario.model_validate(fields)
    machine = {"date": "2026-01-02 03:04 UTC", "commit": "abc", "cpu": "a <CPU>", "cores": "2"}
    run = Run(scenario.model_dump(mode="json"), "fewshard loadtest made-up.yaml", machine)
    run.models = {name: _config(name) for name in models}
    truth = {"items": NUM_MADE_UP_ITEMS, "names": ["no", "yes"], "labels": _truth().tolist()}
    run.truth = {"text": {"name": "sst2", **truth}, "image": {"name": "cifar10", **truth}}
    rng = np.random.default_rng(7)
    for repeat in range(num_repeats):
        for name in models:
            ms = MADE_UP[name][0]
            capacity = 1000 / ms * rng.normal(1, 0.02)
            plans = [Plan("http://h", name, num_users=users, rate=None, duration_s=5.0) for users in (1, 16)]
            plans += [
                Plan("http://h", name, rate=round(share * capacity, 3), duration_s=5.0)
                for share in (0.3, 0.6, 0.8, 0.92)
            ]
            stages = (Stage(2.0, 0.2 * capacity), Stage(1.0, 0.9 * capacity), Stage(2.0, 0.2 * capacity))
            plans.append(Plan("http://h", name, stages=stages, duration_s=5.0))
            for load, plan in zip((0, 0, 1, 1, 1, 1, 2), plans, strict=True):
                _add_leg(run, folder, rng, repeat, load, plan)
            run.sustained.setdefault("1", {}).setdefault(name, []).append(plans[4].rate)
    run.generator_ceiling = 4000.0
    run.save(folder)
    return run


def _truth() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 2, NUM_MADE_UP_ITEMS)


def _config(name: str) -> dict[str, Any]:
    kind = "dense" if name.endswith("dense") else "moe"
    card = {"macs": MADE_UP[name][2], "parameters_total": 10_000_000, "parameters_active": 4_000_000}
    task = "text" if name.startswith("sst2") else "image"
    return {"name": name, "task": task, "kind": kind, "dtype": "fp32", "device": "cpu", "card": card}


def _add_leg(run: Run, folder: Path, rng: np.random.Generator, repeat: int, load: int, plan: Plan) -> None:
    ms, wrong, _ = MADE_UP[plan.model]
    rate = plan.rate or (plan.stages[0].rate if plan.stages else 1000 / ms / (1 if plan.num_users > 1 else 2))
    sent = np.sort(rng.uniform(-1, plan.duration_s, int(rate * 6)))
    usage = np.full(len(sent), min(rate * ms / 1000, 0.93))
    if plan.stages:
        usage[(sent > 2) & (sent < 3)] = 0.9
    waits = ms / 2 + rng.exponential(ms / 2 / (1 - usage))
    items = rng.integers(0, NUM_MADE_UP_ITEMS, len(sent))
    # Whether an item is answered wrongly is the model's, not the run's.
    fault = np.random.default_rng(len(plan.model)).random(NUM_MADE_UP_ITEMS) < wrong
    answers = [("no", "yes")[answer] for answer in (_truth() ^ fault).tolist()]
    samples = [
        Sample(100 + at, wait, None, 0.1, item, plan.model, answers[item])
        for at, wait, item in zip(sent.tolist(), waits.tolist(), items.tolist(), strict=True)
    ]
    if plan.rate == max((plan.rate or 0), 0.9 * 1000 / ms):
        samples[len(samples) // 2] = Sample(102.0, 1.0, "HTTP 429", 0.1, 3, plan.model)
    number, kind = len(run.legs), LOADS[load]["kind"]
    record(samples, 100.0, plan.duration_s).save(folder / f"samples/{number:04d}.npz")
    experts = {"0": {"0": 30.0, "1": 60.0, "2": 10.0}, "1": {"0": 33.0, "1": 33.0, "2": 34.0}}
    counters = Counters(
        len(samples), len(samples) // 2, len(samples) * ms / 1500, {}, experts if "moe" in plan.model else {}
    )
    result = summarise(plan, samples, 100.0, 0.2)
    used = Usage(5.0, cpu_s=len(samples) * ms / 1000, machine_cpu=1.0, memory_mib=400.0 + ms)
    is_kept = None if plan.rate is None else (result.p99_ms or 0) < run.scenario["slo"]["p99_ms"]
    run.legs.append(
        LoadRun(number, repeat, kind, load, plan.model, result, used, {plan.model: counters}, is_kept=is_kept)
    )
