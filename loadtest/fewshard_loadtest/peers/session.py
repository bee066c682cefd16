"""One server from start to stop: answers checked, load applied, memory read. `rounds` runs the sessions."""

import shlex
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from fewshard_loadtest.adapters import DIALECTS
from fewshard_loadtest.errors import BenchmarkError
from fewshard_loadtest.measure import Plan, Result
from fewshard_loadtest.peers.catalogue import ECHO, MODEL, OURS
from fewshard_loadtest.peers.checkpoint import Expected, check_labels
from fewshard_loadtest.peers.engines import accuracy
from fewshard_loadtest.peers.launch import Launch, Server
from fewshard_loadtest.peers.processes import serving
from fewshard_loadtest.peers.settings import Setting
from fewshard_loadtest.resource_usage import Memory, memory_of
from fewshard_loadtest.run import run_headless

NUM_CHECKED = 64
"""Texts that every session is asked for, one after another."""
NUM_CLIENTS = 16
_ANSWER_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Load:
    """The load on every server.

    users: numbers of users of the closed loop.
    shares: rates of the open loop, as shares of the capacity seen in the closed loop.
    duration_s, warmup_s: seconds of each run, and before it.
    """

    users: tuple[int, ...]
    shares: tuple[float, ...]
    duration_s: float
    warmup_s: float
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Subject:
    """A server with a setting: one row of the report."""

    server: Server
    setting: Setting

    def __str__(self) -> str:
        return f"{self.server.title} {self.setting.name}"


@dataclass(frozen=True, slots=True)
class Session:
    """Results of one start of a subject.

    command: the command line.
    closed_loop: results by number of users.
    open_loop: results by share of the capacity.
    memory: memory of its processes.
    agreeing: share of labels equal to the checkpoint's in fp32; None for the echo.
    accuracy: share of labels that are true, many texts in flight; None if unknown or not asked for.
    dtype: dtype of the model; None for the echo.
    mean_batches: mean batch size by number of users; our server only.
    """

    command: str
    closed_loop: list[Result] = field(default_factory=list)
    open_loop: dict[float, Result] = field(default_factory=dict)
    memory: list[Memory] = field(default_factory=list)
    agreeing: float | None = None
    accuracy: float | None = None
    dtype: str | None = None
    mean_batches: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Place:
    """What servers run with.

    bins: folder of each environment's programs.
    model: the checkpoint.
    expected: its labels.
    port: port of the servers.
    work: folder of their files and logs.
    exports: the checkpoint for other engines.
    int8: the checkpoint in eight bits, for our own server.
    """

    bins: dict[str, Path]
    model: Path
    expected: Sequence[Expected]
    port: int
    work: Path
    exports: Path | None = None
    int8: Path | None = None

    def launch(self, subject: Subject) -> Launch:
        """Parameters for starting a subject."""
        server, setting = subject.server, subject.setting
        bin_ = self.bins.get(server.environment_name, Path(sys.executable).parent)
        own = self.int8 if server.name == OURS and setting.dtype == "int8" else None
        model = own or self.model
        return Launch(bin_, model, self.port, self.work, setting, self.exports)


def measure(subject: Subject, place: Place, load: Load, is_graded: bool = False) -> Session:
    """Start a subject, check its answers, run the load and stop it. Raises BenchmarkError if it fails.

    is_graded: also ask for every expected text, many at once, for the accuracy.
    """
    launch, url = place.launch(subject), f"http://127.0.0.1:{place.port}"
    command, environment = subject.server.command(launch), subject.server.environment(launch)
    log = place.work / f"{subject.server.name}.log"
    with serving(command, url + subject.server.ready, log, environment, place.work) as process:
        agreeing = check_answers(subject, url, place.expected[:NUM_CHECKED])
        right = _grade(subject, url, place.expected) if is_graded else None
        dtype = _dtype(subject, url)
        session = Session(shlex.join(command), agreeing=agreeing, accuracy=right, dtype=dtype)
        for num_users in load.users:
            before = _batches(subject, url)
            session.closed_loop.append(_run(subject, _plan(subject, url, load, process.pid, num_users)))
            session.mean_batches.update(_mean_batch(num_users, before, _batches(subject, url)))
        session.memory.extend(memory_of(process.pid))
        capacity = max(run.answered_rps for run in session.closed_loop)
        for share in load.shares if capacity and subject.server.name != ECHO else ():
            plan = _plan(subject, url, load, process.pid, 1, rate=share * capacity)
            session.open_loop[share] = _run(subject, plan)
    return session


def check_answers(subject: Subject, url: str, expected: Sequence[Expected]) -> float | None:
    """The share of right labels, one request per text. Raises BenchmarkError if too few are right."""
    if subject.server.name == ECHO:
        return None
    labels = _labels(subject, url, expected, num_clients=1)
    return check_labels(expected, labels, is_exact=subject.setting.dtype == "fp32")


def _grade(subject: Subject, url: str, expected: Sequence[Expected]) -> float | None:
    """The accuracy with many requests in flight, so that batches form; None if truth is unknown."""
    if subject.server.name == ECHO or accuracy(expected, [one.label for one in expected]) is None:
        return None
    return accuracy(expected, _labels(subject, url, expected, NUM_CLIENTS))


def _labels(subject: Subject, url: str, expected: Sequence[Expected], num_clients: int) -> list[str]:
    """The labels over HTTP, one text a request. Raises BenchmarkError if the server speaks otherwise."""
    try:
        with (
            httpx.Client(base_url=url, timeout=_ANSWER_TIMEOUT_S) as client,
            ThreadPoolExecutor(num_clients) as pool,
        ):
            return list(pool.map(lambda one: _label(subject, client, one.text), expected))
    except (httpx.HTTPError, ValueError) as error:
        raise BenchmarkError(f"does not answer as it should: {error}") from error


def _label(subject: Subject, client: httpx.Client, text: str) -> str:
    dialect = DIALECTS[subject.server.dialect]
    request = dialect.request(MODEL, [text])
    answer = client.post(request.path, content=request.body, headers=request.headers)
    return dialect.label_in(answer.raise_for_status().content)


def _plan(
    subject: Subject, url: str, load: Load, pid: int, num_users: int, rate: float | None = None
) -> Plan:
    return Plan(
        host=url,
        model=MODEL,
        num_users=num_users,
        rate=None if rate is None else round(rate, 3),
        duration_s=load.duration_s,
        warmup_s=load.warmup_s,
        seed=load.seed,
        dialect=subject.server.dialect,
        server_pid=pid,
    )


def _run(subject: Subject, plan: Plan) -> Result:
    load = f"{plan.num_users} users" if plan.rate is None else f"{plan.rate:.1f} requests/s"
    result = run_headless(plan)
    found = f"{result.answered_rps:.1f}/s, p50 {result.p50_ms} ms, {result.num_failures} failures"
    print(f"{subject}, {load}: {found}", file=sys.stderr, flush=True)
    return result


def _dtype(subject: Subject, url: str) -> str | None:
    """The setting's dtype, else the one that our server reports; None for the echo."""
    if subject.setting.dtype is not None or subject.server.name != OURS:
        return subject.setting.dtype
    return str(httpx.get(f"{url}/v2/models/{MODEL}/config").raise_for_status().json()["dtype"])


def _batches(subject: Subject, url: str) -> tuple[int, int] | None:
    """Items and batches so far, as our server reports them; None for others."""
    if subject.server.name != OURS:
        return None
    (stats,) = httpx.get(f"{url}/v2/models/{MODEL}/stats").raise_for_status().json()["model_stats"]
    return int(stats["inference_count"]), int(stats["execution_count"])


def _mean_batch(
    num_users: int, before: tuple[int, int] | None, after: tuple[int, int] | None
) -> dict[int, float]:
    if before is None or after is None or after[1] == before[1]:
        return {}
    return {num_users: (after[0] - before[0]) / (after[1] - before[1])}
