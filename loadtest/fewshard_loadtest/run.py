"""Runs a plan from any Python process (benchmarks, tests); Locust runs in separate processes."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from fewshard_loadtest.arrivals import Stage
from fewshard_loadtest.errors import LoadTestError
from fewshard_loadtest.measure import Plan, Result, summarise
from fewshard_loadtest.samples_file import Recording, merge, samples_of

__all__ = ["LoadTestError", "run_headless", "run_recorded"]

CUT_TIMEOUT_S = 15.0


def run_headless(plan: Plan) -> Result:
    """Run one generator. Raises `LoadTestError` with its error output if it prints no result."""
    return _result(_start(plan))


def run_recorded(plan: Plan, file: Path, num_generators: int = 1) -> Result:
    """Run the plan on `num_generators` processes and write their samples to `file`.

    On KeyboardInterrupt the processes stop sending, their samples so far are written to `file`, and the
    exception is raised again.
    """
    with TemporaryDirectory(prefix="fewshard-load-") as folder:
        files = [Path(folder) / f"{number}.npz" for number in range(num_generators)]
        parts = _shares(plan, num_generators)
        processes = [_start(part, one) for part, one in zip(parts, files, strict=True)]
        try:
            results = [_result(process) for process in processes]
        except KeyboardInterrupt:
            _cut(processes)
            _together([one for one in files if one.is_file()], file)
            raise
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
        _together(files, file)
    return results[0] if num_generators == 1 else _merged(plan, results, Recording.load(file))


def _shares(plan: Plan, num: int) -> list[Plan]:
    """Split the plan: the sum of independent Poisson processes is one. Each generator has its own seed."""
    if num == 1:
        return [plan]
    if num > plan.num_users and not plan.is_open:
        raise LoadTestError(f"{num} generators need as many users, not {plan.num_users}")
    stages = tuple(Stage(stage.seconds, stage.rate / num) for stage in plan.stages)
    rate = None if plan.rate is None else plan.rate / num
    users = [max(plan.num_users // num + (number < plan.num_users % num), 1) for number in range(num)]
    return [
        replace(plan, rate=rate, stages=stages, num_users=users[number], seed=1000 * plan.seed + number)
        for number in range(num)
    ]


def _start(plan: Plan, file: Path | None = None) -> subprocess.Popen[str]:
    """Start a generator in its own session, so that Ctrl-C reaches only us; `_cut` then stops it."""
    command = [sys.executable, "-m", "fewshard_loadtest", "--plan", json.dumps(asdict(plan))]
    if file is not None:
        command += ["--samples", str(file)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def _result(process: subprocess.Popen[str]) -> Result:
    output, errors = process.communicate()
    try:
        return Result.from_dict(json.loads(output))
    except ValueError:
        raise LoadTestError(f"exit code {process.returncode}: {errors.strip()}") from None


def _cut(processes: Sequence[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.communicate(timeout=CUT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()


def _together(files: Sequence[Path], file: Path) -> None:
    if len(files) == 1:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(files[0].read_bytes())
    elif files:
        merge([Recording.load(one) for one in files]).save(file)


def _merged(plan: Plan, results: Sequence[Result], recording: Recording) -> Result:
    """One result for all generators: CPU of the busiest, and server CPU as the first measured it."""
    busiest = max(result.generator_cpu for result in results)
    samples = samples_of(recording)
    server_s = results[0].server_cpu_s
    return summarise(plan, samples, recording.begun_at, busiest, server_s, recording.measured_s)
