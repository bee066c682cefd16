"""Measures a Fewshard server beside an application that does nothing: `make bench`, or see --help.

Each model is driven with 1 and with 64 users, then the echo application in the same set-up. Writes JSON and
Markdown.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx
from bench_report import Report

from fewshard_loadtest import Plan, Result, run_headless
from fewshard_loadtest.peers.catalogue import ECHO, echo_command
from fewshard_loadtest.peers.processes import serving
from fewshard_loadtest.resource_usage import Memory, memory_of


def main() -> int:
    """Run everything. Return 1 if a request failed."""
    options = _parse()
    options.out.mkdir(parents=True, exist_ok=True)
    fewshard = [str(Path(sys.executable).parent / "fewshard"), "serve", "--port", str(options.port)]
    if options.config:
        fewshard.append(options.config)
    echo = echo_command(sys.executable, options.port)
    measured = {"fewshard": measure(fewshard, options, "fewshard"), ECHO: measure(echo, options, ECHO)}
    report = Report(
        command=shlex.join(["python", *sys.argv]),
        runs={name: runs for name, (runs, _) in measured.items()},
        memory={name: memory for name, (_, memory) in measured.items()},
    )
    report.write(options.out)
    print(report.as_markdown())
    return 1 if any(run.num_failures for runs in report.runs.values() for run in runs) else 0


def measure(
    command: Sequence[str], options: argparse.Namespace, name: str
) -> tuple[list[Result], list[Memory]]:
    """Run all plans against one server. Return the results and its memory afterwards."""
    url = f"http://127.0.0.1:{options.port}"
    with serving(command, f"{url}/v2/health/ready", options.out / f"{name}.log") as server:
        models = {ECHO: "text"} if name == ECHO else served_models(url, options.models)
        plans = [
            Plan(
                host=url,
                model=model,
                protocol="binary" if task == "image" else "classify",
                payload="images" if task == "image" else "texts",
                num_users=num_users,
                duration_s=options.duration,
                warmup_s=options.warmup,
            )
            for model, task in models.items()
            for num_users in options.users
        ]
        return [_run(plan) for plan in plans], memory_of(server.pid)


def served_models(url: str, wanted: list[str] | None) -> dict[str, str]:
    """Return names and tasks of the ready models, or of those in `wanted`."""
    index = (
        httpx.post(f"{url}/v2/repository/index", json={"ready": True}, timeout=30).raise_for_status().json()
    )
    names = wanted or [entry["name"] for entry in index]
    configs = {name: httpx.get(f"{url}/v2/models/{name}/config", timeout=30) for name in names}
    return {name: config.raise_for_status().json()["task"] for name, config in configs.items()}


def _run(plan: Plan) -> Result:
    print(f"{plan.model}, {plan.protocol}, {plan.num_users} users", file=sys.stderr, flush=True)
    return run_headless(plan)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", metavar="fewshard.yaml", nargs="?", help="default: every bundled model")
    parser.add_argument("--models", type=lambda text: text.split(","), help="drive only these (a,b)")
    parser.add_argument("--users", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--duration", type=float, default=20.0, help="seconds a run (default: %(default)s)")
    parser.add_argument("--warmup", type=float, default=3.0, help="seconds before it (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-server"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
