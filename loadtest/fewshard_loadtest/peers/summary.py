"""Summary of the rounds: medians, breakdown of our CPU time, and ratios to the best peer."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from fewshard_loadtest.measure import Result
from fewshard_loadtest.peers.catalogue import ECHO, FIRST_PEERS, OURS
from fewshard_loadtest.peers.engines import is_in_class
from fewshard_loadtest.peers.rounds import Found, is_ours
from fewshard_loadtest.peers.session import Session, Subject
from fewshard_loadtest.peers.settings import SHIPPED

_REFUSAL = re.compile(r"\b(429|503)\b")


@dataclass(frozen=True, slots=True)
class Row:
    """One subject under one load: medians over the rounds, and sums of requests and errors.

    load: number of users, or share of the capacity.
    rate: requests sent per second in the open loop; None in the closed loop.
    refused: responses 429 and 503.
    failed: all other errors.
    cpu_ms: CPU time of the server's processes per successful response.
    generator_cpu: share of one core that the load generator used.
    """

    subject: Subject
    load: float
    num_rounds: int
    rate: float | None
    answered_rps: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    num_requests: int
    refused: int
    failed: int
    cpu_ms: float | None
    generator_cpu: float


@dataclass(frozen=True, slots=True)
class CpuSplit:
    """Breakdown of the CPU milliseconds of one of our responses; `rest_ms` is the unexplained part."""

    num_users: int
    mean_batch: float
    total_ms: float
    model_ms: float
    echo_ms: float

    @property
    def rest_ms(self) -> float:
        return self.total_ms - self.model_ms - self.echo_ms


@dataclass(frozen=True, slots=True)
class Ratio:
    """Our figure divided by the best peer's, inverted for latencies: above 1, ours is better."""

    what: str
    ours: float
    best: float
    peer: str
    ratio: float
    wanted: float


def closed_loop(found: Found) -> list[Row]:
    """A row per subject and number of users, ordered by users."""
    rows = [_row(subject, load, runs) for subject, load, runs in _by_load(found, _closed_runs)]
    return sorted(rows, key=lambda row: row.load)


def open_loop(found: Found) -> list[Row]:
    """A row per subject and share of the capacity, ordered by share."""
    rows = [_row(subject, load, runs) for subject, load, runs in _by_load(found, _open_runs)]
    return sorted(rows, key=lambda row: row.load)


def memory_mib(sessions: Sequence[Session]) -> float:
    """Proportional memory of all processes of a server: the median over its sessions."""
    return median(sum(entry.pss_mib for entry in session.memory) for session in sessions)


def batch_sizes(found: Found) -> dict[int, float]:
    """Mean batch size of our server by number of users."""
    ours = [
        session for subject, sessions in found.sessions.items() if is_ours(subject) for session in sessions
    ]
    users = sorted({users for session in ours for users in session.mean_batches})
    return {users: median(s.mean_batches[users] for s in ours if users in s.mean_batches) for users in users}


def cpu_splits(found: Found, model_ms: Mapping[int, float]) -> list[CpuSplit]:
    """A breakdown for each number of users whose batch size is a key of `model_ms`."""
    rows = closed_loop(found)
    ours = {int(row.load): row.cpu_ms for row in rows if is_ours(row.subject)}
    echo = {int(row.load): row.cpu_ms for row in rows if row.subject.server.name == ECHO}
    splits = []
    for users, batch in batch_sizes(found).items():
        total, base, cost = ours.get(users), echo.get(users), model_ms.get(round(batch))
        if total is not None and base is not None and cost is not None:
            splits.append(CpuSplit(users, batch, total, cost, base))
    return splits


def accuracy(found: Found, subject: Subject) -> float | None:
    """The accuracy of a subject over HTTP; None if it is unknown."""
    known = [session.accuracy for session in found.sessions.get(subject, ()) if session.accuracy is not None]
    return min(known) if known else None


def in_class(found: Found, subject: Subject) -> bool:
    """Whether a subject answers as well as fp32 does: only then is it a rival."""
    return is_in_class(accuracy(found, subject), found.of_fp32)


def ratios(found: Found) -> list[Ratio]:
    """The project's own targets, for the loads that were run, and where eight bits stand beside them."""
    rows = [row for row in closed_loop(found) if in_class(found, row.subject)]
    at = {users: [row for row in rows if row.load == users] for users in (1, 64)}
    peers = [row for row in at[64] if row.subject.server.is_peer]
    shipped = [row for row in peers if row.subject.setting.name == SHIPPED]
    tuned = [row for row in peers if row.subject.setting.name != SHIPPED]
    first = [row for row in tuned if row.subject.server.name in FIRST_PEERS]
    alone = [row for row in at[1] if row.subject.server.is_peer]
    asked: list[Ratio | None] = []
    for subject in dict.fromkeys(row.subject for row in rows if row.subject.server.name == OURS):
        if not is_ours(subject) and subject.setting.dtype != "int8":
            continue
        name = "" if is_ours(subject) else "int8, "
        mine = [row for row in at[64] if row.subject == subject]
        my_one = [row for row in at[1] if row.subject == subject]
        asked += [
            _best(f"{name}requests/s at 64 users, peers as shipped", mine, shipped, _rps, 5.0),
            _best(f"{name}requests/s at 64 users, torch peers tuned", mine, first, _rps, 3.0),
            _best(f"{name}requests/s at 64 users, peers tuned", mine, tuned, _rps, 1.8),
            _best(f"{name}p99 at 64 users", mine, peers, _faster(lambda row: row.p99_ms), 1.0),
            _best(f"{name}p50 at 1 user", my_one, alone, _faster(lambda row: row.p50_ms), 1 / 0.6),
        ]
    return [ratio for ratio in asked if ratio is not None]


def _rps(row: Row) -> float:
    return row.answered_rps


def _faster(latency: Callable[[Row], float | None]) -> Callable[[Row], float]:
    """A score from a latency, negated so that the greatest is the fastest; no response scores lowest."""
    return lambda row: -(latency(row) or float("inf"))


def _best(
    what: str, ours: Sequence[Row], peers: Sequence[Row], score: Callable[[Row], float], wanted: float
) -> Ratio | None:
    """The ratio to the best peer; None if ours or every peer is missing."""
    if not ours or not peers:
        return None
    best = max(peers, key=score)
    mine, theirs = score(ours[0]), score(best)
    ratio = theirs / mine if theirs < 0 else mine / theirs if theirs else float("inf")
    return Ratio(what, abs(mine), abs(theirs), str(best.subject), ratio, wanted)


def _closed_runs(session: Session) -> Iterable[tuple[float, Result]]:
    return ((float(run.plan.num_users), run) for run in session.closed_loop)


def _open_runs(session: Session) -> Iterable[tuple[float, Result]]:
    return session.open_loop.items()


def _by_load(
    found: Found, runs_of: Callable[[Session], Iterable[tuple[float, Result]]]
) -> list[tuple[Subject, float, list[Result]]]:
    together: dict[tuple[Subject, float], list[Result]] = {}
    for subject, sessions in found.sessions.items():
        for session in sessions:
            for load, run in runs_of(session):
                together.setdefault((subject, load), []).append(run)
    return [(subject, load, runs) for (subject, load), runs in together.items()]


def _row(subject: Subject, load: float, runs: Sequence[Result]) -> Row:
    refused = sum(n for run in runs for error, n in run.errors.items() if _REFUSAL.search(error))
    rates = [run.plan.rate for run in runs if run.plan.rate is not None]
    return Row(
        subject=subject,
        load=load,
        num_rounds=len(runs),
        rate=median(rates) if rates else None,
        answered_rps=median(run.answered_rps for run in runs),
        p50_ms=_median(run.p50_ms for run in runs),
        p95_ms=_median(run.p95_ms for run in runs),
        p99_ms=_median(run.p99_ms for run in runs),
        num_requests=sum(run.num_requests for run in runs),
        refused=refused,
        failed=sum(run.num_failures for run in runs) - refused,
        cpu_ms=_median(_cpu_ms(run) for run in runs),
        generator_cpu=median(run.generator_cpu for run in runs),
    )


def _cpu_ms(run: Result) -> float | None:
    """CPU milliseconds per response that arrived within the measured time."""
    num_answered = run.answered_rps * run.plan.duration_s
    return None if run.server_cpu_s is None or not num_answered else 1000 * run.server_cpu_s / num_answered


def _median(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return median(there) if there else None
