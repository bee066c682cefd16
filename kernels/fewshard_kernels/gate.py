"""The gate: a sparse path runs only where it was measured faster than the dense one, on this device.

Used by `sparse_linear`. Nothing here knows tensors: the candidates and the clock are passed in.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

DENSE = "dense"

# Runs the call and returns the seconds it took.
Clock = Callable[[Callable[[], object]], float]
Candidates = Mapping[str, Callable[[], object]]


def wall_clock(call: Callable[[], object]) -> float:
    """Seconds by the monotonic clock; right for a CPU. On a GPU the call itself must wait for the device."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def bucket(num_rows: int) -> int:
    """Rows of a batch, rounded up to a power of two: batches of one bucket share a decision."""
    return 1 << max(0, num_rows - 1).bit_length()


@dataclass(frozen=True, slots=True)
class Key:
    """What a decision holds for: `device` in words that name the hardware, `batch` from `bucket`."""

    device: str
    op: str
    shape: tuple[int, ...]
    dtype: str
    batch: int

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        return f"{self.op} {size} {self.dtype}, up to {self.batch} rows, on {self.device}"


@dataclass(frozen=True, slots=True)
class Decision:
    """Which candidate runs, and why in words; `seconds`: median of each, without those that failed."""

    key: Key
    chosen: str
    reason: str
    seconds: Mapping[str, float]


class Gate:
    """Measures once for each key, then remembers; in `path` too, if one is named. Safe between threads.

    `margin`: the share of the dense time a sparse path must save. `repeats`: rounds, in each of which every
    candidate runs once, after one that does not count. `version`: decisions of a file written under another
    version are dropped, since a new library has other kernels. Raises ValueError for a file that is not a
    gate's.
    """

    def __init__(
        self,
        clock: Clock = wall_clock,
        *,
        margin: float = 0.05,
        repeats: int = 9,
        path: Path | None = None,
        version: str = "",
    ) -> None:
        self._clock, self._margin, self._repeats = clock, margin, repeats
        self._path, self._version = path, version
        self._lock = threading.Lock()
        self._decisions = {} if path is None else _load(path, version)

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """Every decision so far, in the order they were made."""
        return tuple(self._decisions.values())

    def known(self, key: Key) -> Decision | None:
        """The decision for `key`, if there is one; measures nothing."""
        return self._decisions.get(key)

    def choose(self, key: Key, candidates: Candidates) -> str:
        """The name of the candidate to run: "dense", which must be among them, unless another is faster.

        A sparse candidate that raises RuntimeError when it is tried is not chosen; the dense one must work.
        """
        if DENSE not in candidates:
            raise ValueError(f"the candidates {', '.join(candidates)} lack {DENSE!r}")
        with self._lock:
            known = self._decisions.get(key)
            if known is None or known.chosen not in candidates:
                known = self._decisions[key] = self._decide(key, candidates)
                self._save()
        return known.chosen

    def explain(self) -> list[tuple[str, str, str]]:
        """What, which and why of every decision, for `fewshard doctor`."""
        return [(str(each.key), each.chosen, each.reason) for each in self.decisions]

    def _decide(self, key: Key, candidates: Candidates) -> Decision:
        works, failures = _tried(candidates)
        if len(works) == 1:
            reason = "; ".join(failures) or "there is no sparse path here"
            return Decision(key, DENSE, reason, {})
        seconds = self._measure(works)
        fastest = min((name for name in seconds if name != DENSE), key=seconds.__getitem__)
        passes = seconds[fastest] <= (1 - self._margin) * seconds[DENSE]
        reason = "; ".join([self._compare(fastest, seconds, passes), *failures])
        return Decision(key, fastest if passes else DENSE, reason, seconds)

    def _measure(self, candidates: Candidates) -> dict[str, float]:
        rounds = [
            {name: self._clock(call) for name, call in candidates.items()} for _ in range(self._repeats)
        ]
        return {name: median(times[name] for times in rounds) for name in candidates}

    def _compare(self, fastest: str, seconds: Mapping[str, float], passes: bool) -> str:
        times = f"{fastest} took {_microseconds(seconds[fastest])}, dense {_microseconds(seconds[DENSE])}"
        return times if passes else f"{times}; it must be {self._margin:.0%} faster to be chosen"

    def _save(self) -> None:
        if self._path is None:
            return
        decisions = [asdict(each) for each in self._decisions.values()]
        partial = self._path.with_name(f"{self._path.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps({"version": self._version, "decisions": decisions}, indent=1) + "\n")
        partial.replace(self._path)


def _tried(candidates: Candidates) -> tuple[Candidates, list[str]]:
    """The candidates whose first call works, and what the others said."""
    works, failures = {}, []
    for name, call in candidates.items():
        try:
            call()
        except RuntimeError as error:
            if name == DENSE:
                raise
            failures.append(f"{name} fails here: {next(iter(str(error).splitlines()), 'RuntimeError')}")
        else:
            works[name] = call
    return works, failures


def _load(path: Path, version: str) -> dict[Key, Decision]:
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text())
        decisions = [_decision(entry) for entry in found["decisions"]]
        stored_version = found["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a file of measured decisions; delete it: {error}") from error
    return {each.key: each for each in decisions} if stored_version == version else {}


def _decision(entry: dict[str, Any]) -> Decision:
    key = Key(**{**entry["key"], "shape": tuple(entry["key"]["shape"])})
    return Decision(**{**entry, "key": key})


def _microseconds(seconds: float) -> str:
    return f"{1e6 * seconds:.3g} us"
