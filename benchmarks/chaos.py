"""Kills, stops and rebalances the shards of one model under a steady load: `make chaos`, or see --help.

The model is served by a leader in this process and workers in processes of their own, through the engine that
serves it in production, without Ray and HTTP. Every answer is compared with the whole model's. Prints a
table, and with --out writes it as JSON; exits with 1 where an answer was wrong or missing.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fewshard_core.formats import FORMATS
from fewshard_core.values import TextInput
from fewshard_models.sharding import Placement, contiguous, round_robin
from fewshard_serve.backends.load import load_model
from fewshard_serve.backends.sharded_text import ShardedTextModel, load_sharded_model
from fewshard_serve.core import BatchStats, GroupState, PredictionRequest
from fewshard_serve.engine import Engine
from fewshard_serve.engine.settings import EngineSettings
from fewshard_serve.errors import ServeError
from fewshard_serve.group.launcher import ProcessLauncher
from fewshard_serve.group.settings import ExpertsSettings

MODEL = "chaos"
POLL_S = 0.005
SPEED_WINDOW_S = 1.0
FULL_SPEED = 2.0
"""Recovered: the median latency of one second's requests is at most this multiple of the quiet median."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One request.

    sent_at: monotonic seconds.
    seconds: time until the answer.
    outcome: "ok", "wrong" or an error code.
    """

    sent_at: float
    seconds: float
    outcome: str


@dataclass(frozen=True, slots=True)
class Phase:
    """One disturbance of the group, and what the clients observed. Seconds count from it; None: never.

    worst_s: the slowest answer.
    speed_s: time until answers came at full speed again.
    full_s: time until the group was complete again.
    """

    name: str
    num_requests: int
    num_errors: int
    num_wrong: int
    p50_ms: float
    p99_ms: float
    worst_s: float
    speed_s: float | None
    full_s: float | None


class Chaos:
    """A model under `rate` requests a second, one sentence each. Lives on one event loop."""

    def __init__(self, model: ShardedTextModel, launcher: ProcessLauncher, expected: "Expected", rate: float):
        self.model, self.launcher, self.expected, self.rate = model, launcher, expected, rate
        self.overheads_ms: list[float] = []
        self._name = model.info.name
        self._engine = Engine([model], {self._name: EngineSettings()}, self._note)
        self._quiet_p50 = 0.0

    async def phase(
        self, name: str, deed: Callable[[], object], seconds: float, limit_s: float = 90.0
    ) -> Phase:
        """Send load, call `deed` after a second, and go on until the group is complete and `seconds` are
        over."""
        before, sending = self.model.group(), asyncio.create_task(self._send_until(stop := asyncio.Event()))
        await asyncio.sleep(1.0)
        done_at = time.monotonic()
        await asyncio.to_thread(deed)
        full_s = await self._whole_again(before, done_at, limit_s)
        await asyncio.sleep(max(0.0, done_at + seconds - time.monotonic()))
        stop.set()
        return self._summary(name, await sending, done_at, full_s)

    async def quiet(self, seconds: float) -> Phase:
        """Send the load without a disturbance."""
        phase = await self.phase("quiet", lambda: None, seconds, limit_s=0.0)
        self._quiet_p50 = phase.p50_ms / 1000
        return phase

    async def close(self) -> None:
        await self._engine.drain(10.0)
        self.model.close()

    async def _whole_again(self, before: GroupState, done_at: float, limit_s: float) -> float | None:
        """Wait until the group has reacted and has as many shards as before."""
        while time.monotonic() < done_at + limit_s:
            now = self.model.group()
            if now.generation != before.generation and now.size == before.size:
                return time.monotonic() - done_at
            await asyncio.sleep(POLL_S)
        return None

    async def _send_until(self, stop: asyncio.Event) -> list[Answer]:
        """Send at a fixed rate, whether or not earlier requests are answered (open loop)."""
        tasks, due_at = [], time.monotonic()
        while not stop.is_set():
            tasks.append(asyncio.create_task(self._one(len(tasks))))
            due_at += 1 / self.rate
            await asyncio.sleep(max(0.0, due_at - time.monotonic()))
        return await asyncio.gather(*tasks)

    async def _one(self, number: int) -> Answer:
        text, sent_at = number % len(self.expected.texts), time.monotonic()
        try:
            request = PredictionRequest([TextInput(self.expected.texts[text])])
            answer = await self._engine.classify(self._name, request)
            outcome = "ok" if self.expected.fits(text, answer.logits[0]) else "wrong"
        except ServeError as error:
            outcome = error.code
        return Answer(sent_at, time.monotonic() - sent_at, outcome)

    def _note(self, stats: BatchStats) -> None:
        self.overheads_ms.append(1000 * self.model.last_overhead_s)

    def _summary(self, name: str, answers: Sequence[Answer], done_at: float, full_s: float | None) -> Phase:
        seconds = np.array([answer.seconds for answer in answers])
        return Phase(
            name,
            len(answers),
            sum(answer.outcome not in ("ok", "wrong") for answer in answers),
            sum(answer.outcome == "wrong" for answer in answers),
            round(1000 * float(np.quantile(seconds, 0.5)), 1),
            round(1000 * float(np.quantile(seconds, 0.99)), 1),
            round(float(seconds.max()), 3),
            self._full_speed(answers, done_at),
            None if full_s is None else round(full_s, 2),
        )

    def _full_speed(self, answers: Sequence[Answer], done_at: float) -> float | None:
        sent_s = np.array([answer.sent_at - done_at for answer in answers])
        seconds = np.array([answer.seconds for answer in answers])
        for start in np.arange(0.0, sent_s.max() - SPEED_WINDOW_S, SPEED_WINDOW_S / 4):
            window = seconds[(sent_s >= start) & (sent_s < start + SPEED_WINDOW_S)]
            if np.median(window) <= FULL_SPEED * self._quiet_p50:
                return float(start)
        return None


@dataclass(frozen=True, slots=True)
class Expected:
    """The whole model's answers."""

    texts: list[str]
    logits: NDArray[np.float32]
    tolerance: float

    @classmethod
    def of(cls, path: str, texts: list[str], dtype: str = "auto") -> "Expected":
        model = load_model(MODEL, path, "auto", dtype)
        logits = model.run(model.prepare([TextInput(text) for text in texts])).logits
        return cls(texts, logits, FORMATS[model.info.dtype].tolerance)

    def fits(self, text: int, logits: NDArray[np.float32]) -> bool:
        return bool(np.abs(logits - self.logits[text]).max() <= self.tolerance)


def kill(launcher: ProcessLauncher, shard: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(launcher.pids[shard], number)


async def storm(chaos: Chaos, seconds: float) -> list[Phase]:
    """Run every disturbance, one after the other."""
    group = chaos.model.group()
    shape = len(group.placement), sum(map(len, group.placement[0])), group.num_shards
    slots = max(len(experts) for layer in group.placement for experts in layer)
    phases = [await chaos.quiet(seconds)]
    for shard in range(1, group.num_shards):
        deed = partial(kill, chaos.launcher, shard, signal.SIGKILL)
        phases.append(await chaos.phase(f"kill -9 shard {shard}", deed, seconds))
    stop = partial(kill, chaos.launcher, 1, signal.SIGSTOP)
    phases.append(await chaos.phase("SIGSTOP shard 1", stop, seconds))
    first = contiguous(*shape, slots)
    for placement in (rotated(first), round_robin(*shape, slots), rotated(first), first):
        phases.append(await chaos.phase("move experts", partial(chaos.model.apply, placement), seconds))
    return phases


def rotated(placement: Placement) -> Placement:
    """Move every expert to the next shard."""
    return Placement(np.roll(placement.slots, 1, axis=1), placement.num_experts)


def as_markdown(phases: Sequence[Phase]) -> str:
    names = "what", "requests", "errors", "wrong", "p50 ms", "p99 ms", "worst s"
    head = f"| {' | '.join(names)} | full speed after s | whole after s |"
    lines = [head, "| --- |" + " --- |" * 8]
    for phase in phases:
        cells = ["-" if value is None else str(value) for value in asdict(phase).values()]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def sentences(number: int) -> list[str]:
    """Return the load test's sentences, repeated as needed."""
    own = files("fewshard_loadtest").joinpath("sentences.txt").read_text(encoding="utf-8").split("\n")
    own = [line for line in own if line.strip()]
    return [own[index % len(own)] for index in range(number)]


async def run(options: argparse.Namespace) -> int:
    expected = Expected.of(options.path, sentences(60), options.dtype)
    launcher = ProcessLauncher()
    experts = ExpertsSettings(options.shards, exchange_timeout_ms=1000 * options.timeout)
    model = load_sharded_model(MODEL, options.path, "auto", options.dtype, experts, launcher)
    chaos = Chaos(model, launcher, expected, options.rate)
    try:
        phases = await storm(chaos, options.seconds)
    finally:
        await chaos.close()
    overhead = float(np.median(chaos.overheads_ms))
    print(as_markdown(phases))
    print(f"\nmedian overhead of the leader: {overhead:.2f} ms a batch ({len(chaos.overheads_ms)} batches)")
    if options.out:
        found = {"phases": [asdict(phase) for phase in phases], "overhead_ms": overhead}
        options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 1 if any(phase.num_errors or phase.num_wrong for phase in phases) else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--path", default="zoo:sst2-moe", help="an MoE checkpoint (zoo:sst2-moe)")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second (50)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each phase, at least (10)")
    parser.add_argument("--timeout", type=float, default=3.0, help="of an exchange, seconds (3)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
