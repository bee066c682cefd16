"""Measures where the time of a request goes: processes, stages, and what the server adds to model and echo.

Our server, another checkout of it (`--before`) and an application that does nothing are up at the same time
and are driven in turns, in rounds, with 1 and with 64 users:

    python benchmarks/request_budget.py --model zoo:sst2-moe --model zoo:cifar10-dst --before ../main

Writes `budget.json` and `budget.md` to `docs/results/cpu/<CPU>`; `docs/performance.md` explains the table.
"""

import argparse
import json
import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import psutil

from fewshard_core.values import Input, PixelArray, TextInput
from fewshard_loadtest import Plan, run_headless
from fewshard_loadtest.payloads import load as load_payload
from fewshard_loadtest.peers.catalogue import ECHO
from fewshard_loadtest.peers.machine import cpu_slug, machine, markdown_table
from fewshard_loadtest.peers.processes import serving
from fewshard_loadtest.resource_usage import tree

HERE = Path(__file__).resolve().parents[1]
PACKAGES = ("core", "kernels", "models", "serve", "loadtest")
ROLES = {
    "replica": re.compile(r"ray::ServeReplica:(?!gateway)"),
    "models": re.compile(r"backends\.\w+ import main"),
    "haproxy": re.compile(r"/haproxy "),
}
"""Processes that work for each request. The rest of Ray works whether there are requests or not."""
STAGES = {"compute_input": "prepare", "queue": "queue", "compute_infer": "infer", "compute_output": "encode"}
PROTOCOLS = {"text": ("classify", "texts"), "image": ("binary", "images")}
WARMUP_S = 0.7


@dataclass(frozen=True, slots=True)
class Server:
    """One server that is up. version: "before", "after" or "echo". pid: of the process that was started."""

    version: str
    url: str
    pid: int


@dataclass(frozen=True, slots=True)
class Run:
    """One load on one server.

    cpu_us: CPU microseconds an answer by role.
    stages_us: mean microseconds of a request by stage, as the server counts them; "outside" is the rest of
        the mean latency: network, proxy, routing, reading. Empty for the echo.
    """

    version: str
    model: str
    users: int
    rps: float
    p50_ms: float
    mean_ms: float
    cpu_us: dict[str, float]
    stages_us: dict[str, float]


@dataclass(frozen=True, slots=True)
class Alone:
    """What a model costs without a server: CPU microseconds an item, by items in a pass.

    prepare_us: tokenising or decoding one item.
    """

    model: str
    task: str
    prepare_us: float
    pass_us: dict[int, float]


def main() -> int:
    options = _parse()
    alone = {path: measure_alone(path, options) for path in options.model}
    runs: list[Run] = []
    with ExitStack() as stack:
        starts = [_Started(name, options, place) for place, name in enumerate(_versions(options))]
        with ThreadPoolExecutor() as pool:
            servers = list(pool.map(stack.enter_context, starts))
        for number in range(options.rounds):
            for path in options.model:
                for users in options.users:
                    for server in servers[:: 1 if number % 2 else -1]:
                        runs.append(drive(server, alone[path], users, options.duration))
                        print(runs[-1], file=sys.stderr, flush=True)
    folder = options.out or HERE / "docs/results/cpu" / cpu_slug()
    folder.mkdir(parents=True, exist_ok=True)
    table = as_markdown(runs, list(alone.values()))
    found: dict[str, Any] = {"command": ["python", *sys.argv], "machine": machine()}
    found |= {"alone": list(map(asdict, alone.values())), "runs": list(map(asdict, runs))}
    (folder / "budget.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / "budget.md").write_text(table + "\n")
    print(table)
    return 0


def measure_alone(path: str, options: argparse.Namespace) -> Alone:
    """Run the model in this process with the server's number of threads."""
    import torch

    from fewshard_models.classifier.load import load

    torch.set_num_threads(1)
    model = load(path, device="cpu", dtype=options.dtype)
    task = model.info.task
    inputs = [_input(each) for each in load_payload(PROTOCOLS[task][1]).items[:64]]
    items = model.prepare(inputs)
    spent = min(_cpu_us(lambda: [model.prepare([each]) for each in inputs]) for _ in range(9))
    prepare_us = spent / len(inputs)
    pass_us = {}
    for size in options.sizes:
        batches = [items[at : at + size] for at in range(0, len(items) - size + 1, size)]
        spent = min(_cpu_us(lambda batches=batches: [model.run(each) for each in batches]) for _ in range(7))
        pass_us[size] = round(spent / (len(batches) * size), 1)
    return Alone(path.removeprefix("zoo:"), task, round(prepare_us, 1), pass_us)


def _input(value: Any) -> Input:
    return TextInput(value) if isinstance(value, str) else PixelArray(value)


def _cpu_us(work: Any) -> float:
    began = time.process_time()
    work()
    return 1e6 * (time.process_time() - began)


def _versions(options: argparse.Namespace) -> list[str]:
    return [*(["before"] if options.before else []), "after", ECHO]


class _Started:
    """A context manager that starts a server and gives it as a `Server`."""

    def __init__(self, version: str, options: argparse.Namespace, number: int) -> None:
        self._version, self._port = version, options.port + number
        checkout = options.before.resolve() if version == "before" else HERE
        echo = [sys.executable, "-m", "fewshard_loadtest.peers.apps.echo"]
        options.logs.mkdir(parents=True, exist_ok=True)
        config = options.logs.resolve() / "budget.yaml"  # every version reads a file
        names = [(path.removeprefix("zoo:"), path) for path in options.model]
        models = "".join(f"  - {{name: {name}, path: '{path}'}}\n" for name, path in names)
        config.write_text(f"models:\n{models}", encoding="utf-8")
        own = checkout / ".venv/bin/fewshard"
        fewshard = own if own.is_file() else Path(sys.executable).parent / "fewshard"
        ours = [str(fewshard), "serve", str(config), "--grpc-port", "0"]
        self._command = [*(echo if version == ECHO else ours), "--port", str(self._port)]
        folders = os.pathsep.join(str(checkout / package) for package in PACKAGES)
        self._environment = {**os.environ, "PYTHONPATH": folders}
        self._log = options.logs / f"budget-{version}.log"

    def __enter__(self) -> Server:
        url = f"http://127.0.0.1:{self._port}"
        ready = f"{url}/v2/health/ready"
        self._serving = serving(self._command, ready, self._log, self._environment)
        return Server(self._version, url, self._serving.__enter__().pid)

    def __exit__(self, *error: Any) -> None:
        self._serving.__exit__(*error)


def drive(server: Server, alone: Alone, users: int, duration_s: float) -> Run:
    """Put one load on a server. Raises SystemExit if a request fails."""
    protocol, payload = PROTOCOLS[alone.task]
    protocol = "classify" if server.version == ECHO else protocol
    name = "text" if server.version == ECHO else alone.model
    plan = Plan(
        server.url, name, protocol, payload, num_users=users, duration_s=duration_s, warmup_s=WARMUP_S
    )
    began_s, stages = _cpu_s(server.pid), _stages(server, name)
    result = run_headless(plan)
    ended_s, spent = _cpu_s(server.pid), _stages(server, name)
    if result.num_failures:
        raise SystemExit(f"{server.version}, {name}: {result.errors}")
    num_answers = result.num_requests * (duration_s + WARMUP_S) / duration_s
    cpu_us = dict.fromkeys(ROLES, 0.0)
    for process, role in began_s.keys() & ended_s.keys():
        cpu_us[role] += 1e6 * (ended_s[process, role] - began_s[process, role]) / num_answers
    stages_us = {stage: round(_mean_us(stages[stage], spent[stage]), 1) for stage in stages}
    mean_ms = result.mean_ms or 0.0
    if stages_us:
        stages_us["outside"] = round(1000 * mean_ms - sum(stages_us.values()), 1)
    rates = (result.rps, result.p50_ms or 0.0, mean_ms)
    return Run(server.version, alone.model, users, *rates, cpu_us, stages_us)


def _cpu_s(pid: int) -> dict[tuple[int, str], float]:
    """CPU seconds so far of each process with a role. HAProxy's process ends when it is replaced."""
    found = {}
    for process in tree(pid):
        with suppress(psutil.Error):
            command, times = " ".join(process.cmdline()), process.cpu_times()
            for role, pattern in ROLES.items():
                if pattern.search(command):
                    found[process.pid, role] = times.user + times.system
    return found


def _stages(server: Server, model: str) -> dict[str, tuple[int, int]]:
    """Count and nanoseconds of each stage so far; empty for the echo."""
    if server.version == ECHO:
        return {}
    answer = httpx.get(f"{server.url}/v2/models/{model}/stats", timeout=30).raise_for_status().json()
    stats = answer["model_stats"][0]["inference_stats"]
    return {ours: (stats[theirs]["count"], stats[theirs]["ns"]) for theirs, ours in STAGES.items()}


def _mean_us(before: tuple[int, int], after: tuple[int, int]) -> float:
    return (after[1] - before[1]) / max(after[0] - before[0], 1) / 1000


def as_markdown(runs: Sequence[Run], alone: Sequence[Alone]) -> str:
    """Medians over rounds: one row for each model, number of users and version."""
    found: dict[tuple[str, int, str], list[Run]] = defaultdict(list)
    for run in runs:
        found[run.model, run.users, run.version].append(run)
    costs = {each.model: each for each in alone}
    rows = [_row(found, costs[model], users, version) for model, users, version in sorted(found)]
    models = [
        [each.model, *(f"{us:.0f}" for us in (each.prepare_us, *each.pass_us.values()))] for each in alone
    ]
    sizes = [f"pass of {size}, us an item" for size in alone[0].pass_us]
    return "\n\n".join(
        [markdown_table(_HEADER, rows), markdown_table(("model alone", "prepare, us", *sizes), models)]
    )


_HEADER = (
    *("model", "users", "version", "requests/s", "p50 ms", "HAProxy", "replica", "models' process", "sum"),
    *("beside model and echo", "prepare", "queue", "infer", "encode", "outside"),
)


def _row(found: Any, cost: Alone, users: int, version: str) -> list[str]:
    runs = found[cost.model, users, version]
    cpu = {role: median(run.cpu_us.get(role, 0.0) for run in runs) for role in ROLES}
    stages = [median(run.stages_us.get(name, 0.0) for run in runs) for name in (*STAGES.values(), "outside")]
    echo = median(sum(run.cpu_us.values()) for run in found[cost.model, users, ECHO])
    size = min(cost.pass_us) if users == 1 else max(cost.pass_us)
    rest = sum(cpu.values()) - echo - cost.prepare_us - cost.pass_us[size]
    return [
        *(cost.model, str(users), version, f"{median(run.rps for run in runs):.0f}"),
        f"{median(run.p50_ms for run in runs):.2f}",
        *(f"{cpu[role]:.0f}" for role in ("haproxy", "replica", "models")),
        *(f"{sum(cpu.values()):.0f}", "" if version == ECHO else f"{rest:.0f}"),
        *("" if version == ECHO else f"{stage:.0f}" for stage in stages),
    ]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", required=True, help="zoo:sst2-moe; may be repeated")
    parser.add_argument("--before", type=Path, help="another checkout, which runs with this environment")
    parser.add_argument("--dtype", default="bf16", help="of the model alone (default: %(default)s)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 16], help="items in a pass, alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--users", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--duration", type=float, default=4.0, help="seconds a run (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8123, help="the first of three (default: %(default)s)")
    parser.add_argument("--logs", type=Path, default=Path("runs/budget"))
    parser.add_argument("--out", type=Path, help="default: docs/results/cpu/<CPU>")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
