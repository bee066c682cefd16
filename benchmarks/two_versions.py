"""Measures two checkouts of this project in turns: throughput, time to the first answer, memory.

Each checkout has its own `.venv` (`make setup`). Every round starts both servers of both versions, one after
the other, in an order that changes from round to round; one load generator, of the environment that runs
this, drives them all. Run it on a machine that does nothing else:

    .venv/bin/python benchmarks/two_versions.py ../before . --rounds 4
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from fewshard_loadtest import Plan, run_headless
from fewshard_loadtest.peers.machine import machine, markdown_table
from fewshard_loadtest.peers.processes import serving
from fewshard_loadtest.resource_usage import memory_of

ECHO = "echo"
WAIT_S = 0.05


@dataclass(frozen=True, slots=True)
class Measured:
    """One start of one server.

    first_answer_s: seconds until the first answer.
    memory_mib: PSS in MiB.
    rps: requests a second by number of users.
    p50_ms: median latency in ms by number of users.
    """

    version: str
    model: str
    first_answer_s: float
    memory_mib: float
    rps: dict[int, float]
    p50_ms: dict[int, float]


def main() -> int:
    options = _parse()
    options.out.mkdir(parents=True, exist_ok=True)
    versions = {"before": options.before.resolve(), "after": options.after.resolve()}
    runs: list[Measured] = []
    for number in range(options.rounds):
        for version in sorted(versions, reverse=number % 2 == 0):
            for model in (options.model, ECHO):
                runs.append(measure(version, versions[version], model, options))
                print(runs[-1], file=sys.stderr, flush=True)
        _write(runs, options)
    print(_markdown(runs))
    return 0


def measure(version: str, checkout: Path, model: str, options: argparse.Namespace) -> Measured:
    """Start one server, measure it and stop it."""
    url = f"http://127.0.0.1:{options.port}"
    command = _echo(checkout, options) if model == ECHO else _fewshard(checkout, model, options)
    log = options.out / f"{version}-{model}.log"
    started_at = time.monotonic()
    with serving(command, f"{url}/v2/models/{model}/ready", log, folder=checkout) as server:
        _answer(url, model)
        first_answer_s = time.monotonic() - started_at
        plans = [
            Plan(url, model, num_users=users, duration_s=options.duration, warmup_s=options.warmup)
            for users in options.users
        ]
        results = [run_headless(plan) for plan in plans]
        memory = sum(entry.pss_mib for entry in memory_of(server.pid))
    if any(result.num_failures for result in results):
        raise SystemExit(f"{version}, {model}: requests failed; see {log}")
    rps = {users: round(result.rps, 1) for users, result in zip(options.users, results, strict=True)}
    p50 = {users: round(result.p50_ms or 0, 2) for users, result in zip(options.users, results, strict=True)}
    return Measured(version, model, round(first_answer_s, 2), round(memory, 1), rps, p50)


def _fewshard(checkout: Path, model: str, options: argparse.Namespace) -> list[str]:
    config = options.out.resolve() / "fewshard.yaml"
    config.write_text(f"models:\n  - {{name: {model}, path: 'zoo:{model}'}}\n")
    return [str(checkout / ".venv/bin/fewshard"), "serve", str(config), "--port", str(options.port)]


def _echo(checkout: Path, options: argparse.Namespace) -> list[str]:
    (app,) = [path for path in checkout.rglob("echo.py") if ".venv" not in path.parts]
    return [str(checkout / ".venv/bin/python"), str(app), "--port", str(options.port)]


def _answer(url: str, model: str) -> None:
    """Retry until a request succeeds."""
    while True:
        body = {"inputs": "a gripping and often funny film"}
        with suppress(httpx.TransportError):
            if httpx.post(f"{url}/v2/models/{model}/classify", json=body, timeout=30).is_success:
                return
        time.sleep(WAIT_S)


def _write(runs: Sequence[Measured], options: argparse.Namespace) -> None:
    found = {"command": ["python", *sys.argv], "machine": machine()}
    found["runs"] = [asdict(run) for run in runs]
    (options.out / "two_versions.json").write_text(json.dumps(found, indent=1) + "\n")
    (options.out / "two_versions.md").write_text(_markdown(runs) + "\n")


def _markdown(runs: Sequence[Measured]) -> str:
    """Return medians of both versions and of the ratios, and the ratio of each round."""
    rows = []
    for model in dict.fromkeys(run.model for run in runs):
        of_model = [run for run in runs if run.model == model]
        before, after = ([run for run in of_model if run.version == name] for name in ("before", "after"))
        for name, read in _FIGURES:
            for users in before[0].rps if "{}" in name else (0,):
                pairs = [(read(b, users), read(a, users)) for b, a in zip(before, after, strict=False)]
                rows.append(_row(f"{model}, {name.format(users)}", pairs))
    return markdown_table(("", "before", "after", "ratio, median", "ratios"), rows)


_FIGURES = (
    ("requests/s, {} users", lambda run, users: run.rps[users]),
    ("p50 ms, {} users", lambda run, users: run.p50_ms[users]),
    ("first answer, s", lambda run, _: run.first_answer_s),
    ("memory (PSS), MiB", lambda run, _: run.memory_mib),
)


def _row(name: str, pairs: Sequence[tuple[float, float]]) -> list[str]:
    ratios = [after / before for before, after in pairs]
    medians = [statistics.median(side) for side in zip(*pairs, strict=True)]
    each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    return [name, f"{medians[0]:g}", f"{medians[1]:g}", f"{statistics.median(ratios):.3f}", each]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path, help="a checkout with its .venv")
    parser.add_argument("after", type=Path, help="another one")
    parser.add_argument("--model", default="sst2-moe", help="a bundled model (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--users", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--duration", type=float, default=8.0, help="seconds a run (default: %(default)s)")
    parser.add_argument("--warmup", type=float, default=2.0, help="seconds before it (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--out", type=Path, default=Path("runs/two-versions"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
