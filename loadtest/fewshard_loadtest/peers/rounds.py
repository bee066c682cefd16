"""The whole benchmark: tunes each peer, then measures all subjects in every round. Called by `__main__`."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from fewshard_loadtest.peers.catalogue import FEWSHARD, NOTHING
from fewshard_loadtest.peers.engines import Trial, fastest
from fewshard_loadtest.peers.launch import Server
from fewshard_loadtest.peers.session import Load, Place, Session, Subject, measure
from fewshard_loadtest.peers.settings import (
    SHIPPED,
    TUNED,
    Setting,
    Tried,
    best_of,
    chosen,
    hastier,
    quickest,
)
from fewshard_loadtest.run import LoadTestError

TUNING_USERS = 64


@dataclass(frozen=True, slots=True)
class Found:
    """All measurements.

    sessions: sessions by subject.
    tuning: what every setting of the grid gave, by server.
    missing: why a server or setting is missing.
    trials: every engine in every format, without a server.
    of_fp32: the checkpoint's accuracy in fp32; None if unknown.
    """

    sessions: dict[Subject, list[Session]] = field(default_factory=dict)
    tuning: dict[str, dict[Setting, Tried]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    of_fp32: float | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """How much is measured.

    num_rounds: rounds of all subjects.
    tune_s: seconds of each point of the grid; 0 for no tuning.
    is_quick: a grid of few points.
    num_cores: cores that the servers may use.
    """

    num_rounds: int
    tune_s: float
    is_quick: bool
    num_cores: int


def run(
    place: Place,
    peers: Sequence[Server],
    load: Load,
    work: Work,
    found: Found,
    after_each: Callable[[Found], None],
) -> Found:
    """Measure our server, the echo and the peers. `after_each` receives all results after each session.

    found: what is missing, and the trials of engines. Raises BenchmarkError if our own server fails with its
    defaults; a peer that fails is left out, with the reason.
    """
    subjects = [*ours(place, found), Subject(NOTHING, NOTHING.shipped)]
    for server in peers:
        if not server.is_assembled:
            subjects.append(Subject(server, server.shipped))
        if work.tune_s:
            subjects += _tuned(server, place, load, work, found)
    subjects += _for_one(peers, found)
    for subject in _alternating(subjects, work.num_rounds):
        if str(subject) in found.missing:
            continue
        session = _try(subject, place, load, found, _is_graded(subject, work, found))
        if session is not None:
            found.sessions.setdefault(subject, []).append(session)
            after_each(found)
    return found


def _is_graded(subject: Subject, work: Work, found: Found) -> bool:
    """Once each. Where time is short, peers as shipped are not: their fp32 is compared label by label."""
    is_slow = subject.server.is_peer and subject.setting.name == SHIPPED
    return subject not in found.sessions and not (work.is_quick and is_slow)


def ours(place: Place, found: Found) -> list[Subject]:
    """Our server as shipped and in each format that can be forced here."""
    bf16 = any(trial.dtype == "bf16" and not trial.error for trial in found.trials)
    dtypes = ["fp32", *(["bf16"] if bf16 else []), *(["int8"] if place.int8 else [])]
    return [
        Subject(FEWSHARD, FEWSHARD.shipped),
        *(Subject(FEWSHARD, Setting(dtype, dtype)) for dtype in dtypes),
    ]


def _tuned(server: Server, place: Place, load: Load, work: Work, found: Found) -> Iterator[Subject]:
    """The best setting of the grid by successful responses per second at 64 users, if any could run."""
    best = fastest((trial for trial in found.trials if trial.engine == server.engine), found.of_fp32)
    if best is None:
        found.missing[f"{server.title} tuned"] = f"no format of {server.engine} answers as fp32 does"
        return
    short = replace(load, users=(1, TUNING_USERS), shares=(), duration_s=work.tune_s)
    known = found.tuning.setdefault(server.name, {})
    for setting in server.grid(best.dtype, work.num_cores, work.is_quick):
        _add(Subject(server, setting), place, short, found, known)
    if not known:
        found.missing[f"{server.title} tuned"] = "no point of the grid could be measured"
        return
    hasty = hastier(best_of(known))
    if hasty is not None:
        _add(Subject(server, hasty), place, short, found, known)
    yield Subject(server, chosen(known))


def _add(subject: Subject, place: Place, load: Load, found: Found, known: dict[Setting, Tried]) -> None:
    session = _try(subject, place, load, found)
    if session is not None:
        one, many = session.closed_loop
        known[subject.setting] = Tried(many.answered_rps, one.p50_ms)
    # A setting that cannot run does not exclude the others.
    found.missing.pop(str(subject), None)


def _for_one(peers: Sequence[Server], found: Found) -> Iterator[Subject]:
    """The peer and setting with the lowest latency for one user."""
    best: dict[Subject, float] = {}
    for server in peers:
        known = found.tuning.get(server.name, {})
        setting = quickest(known)
        if setting is not None:
            best[Subject(server, setting)] = known[replace(setting, name=TUNED)].p50_ms or 0.0
    if best:
        yield min(best, key=lambda subject: best[subject])


def _try(subject: Subject, place: Place, load: Load, found: Found, is_graded: bool = False) -> Session | None:
    """Measure a subject; None if a peer or a forced format of ours fails, with the reason recorded."""
    print(f"-- {subject} ({subject.setting})", file=sys.stderr, flush=True)
    try:
        return measure(subject, place, load, is_graded)
    except LoadTestError as error:
        if not subject.server.is_peer and subject.setting.name == SHIPPED:
            raise
        print(f"-- {subject}: {error}", file=sys.stderr, flush=True)
        found.missing[str(subject)] = str(error)
        return None


def _alternating(subjects: Sequence[Subject], num_rounds: int) -> Iterator[Subject]:
    """All subjects in every round; every second round in reverse, so that drift favours none."""
    for number in range(num_rounds):
        yield from subjects if number % 2 == 0 else reversed(subjects)


def is_ours(subject: Subject) -> bool:
    """Whether the subject is our server as shipped."""
    return subject.server.name == FEWSHARD.name and subject.setting.name == SHIPPED
