"""The whole benchmark: tunes each peer, then measures all subjects in every round. Called by `__main__`."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from fewshard_loadtest.peers.catalogue import FEWSHARD, NOTHING, Server
from fewshard_loadtest.peers.session import Load, Place, Session, Subject, measure
from fewshard_loadtest.peers.settings import SHIPPED, Setting, best_of
from fewshard_loadtest.run import LoadTestError

TUNING_USERS = 64


@dataclass(frozen=True, slots=True)
class Found:
    """All measurements.

    sessions: sessions by subject.
    tuning: successful responses per second by server and setting.
    missing: why a server or setting is missing.
    """

    sessions: dict[Subject, list[Session]] = field(default_factory=dict)
    tuning: dict[str, dict[Setting, float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def run(
    place: Place,
    peers: Sequence[Server],
    load: Load,
    num_rounds: int,
    tune_s: float,
    num_cores: int,
    missing: dict[str, str],
    after_each: Callable[[Found], None],
) -> Found:
    """Measure our server, the echo and the peers. `after_each` receives all results after each session.

    Raises BenchmarkError if our own server fails; a peer that fails is left out, with the reason.
    """
    found = Found(missing=dict(missing))
    dtype = _our_dtype(place, load)
    subjects = [Subject(FEWSHARD, FEWSHARD.shipped), Subject(FEWSHARD, Setting("fp32", "fp32"))]
    subjects.append(Subject(NOTHING, NOTHING.shipped))
    for server in peers:
        subjects.append(Subject(server, server.shipped))
        if tune_s:
            subjects += _tuned(server, place, replace(load, duration_s=tune_s), dtype, num_cores, found)
    for subject in _alternating(subjects, num_rounds):
        if str(subject) in found.missing:
            continue
        session = _try(subject, place, load, found)
        if session is not None:
            found.sessions.setdefault(subject, []).append(session)
            after_each(found)
    return found


def _our_dtype(place: Place, load: Load) -> str:
    """The dtype that our server chooses, from a short session."""
    session = measure(Subject(FEWSHARD, FEWSHARD.shipped), place, _short(load, 1, 1.0))
    return session.dtype or "fp32"


def _short(load: Load, num_users: int, duration_s: float) -> Load:
    return replace(load, users=(num_users,), shares=(), duration_s=duration_s)


def _tuned(
    server: Server, place: Place, load: Load, dtype: str, num_cores: int, found: Found
) -> Iterator[Subject]:
    """The best setting of the grid by successful responses per second at 64 users, if any could run."""
    short, rates = _short(load, TUNING_USERS, load.duration_s), found.tuning.setdefault(server.name, {})
    for setting in server.grid(dtype, num_cores):
        session = _try(Subject(server, setting), place, short, found)
        if session is not None:
            rates[setting] = session.closed_loop[0].answered_rps
        # A setting that cannot run does not exclude the others.
        found.missing.pop(f"{server.title} {setting.name}", None)
    if rates:
        yield Subject(server, best_of(rates))
    else:
        found.missing[f"{server.title} tuned"] = "no point of the grid could be measured"


def _try(subject: Subject, place: Place, load: Load, found: Found) -> Session | None:
    """Measure a subject; None if a peer fails, with the reason recorded."""
    print(f"-- {subject} ({subject.setting})", file=sys.stderr, flush=True)
    try:
        return measure(subject, place, load)
    except LoadTestError as error:
        if not subject.server.is_peer:
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
