"""Sends valid requests at their limits beside a second caller; a part of `server_chaos`."""

import asyncio
import hashlib
import json
import secrets
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from chaos_attacks import ATTACKS, DEADLINE_S, predicting_paths
from chaos_probes import Probes, Seen, classify
from chaos_server import Server
from chaos_stage import ALONE, PICTURES, Stage
from chaos_table import Part

from fewshard_loadtest.resource_usage import cpu_seconds, memory_of

ROOM = {"min_items": 16, "max_items": 64}
RATE = 5.0
AFTER_S = 15.0
"""How long CPU time is looked for after the last deadline."""
REST_S = 60.0
MIN_SHARE, MAX_P99, MAX_CPU_S, MAX_MIB, MAX_KEPT = 0.99, 3.0, 1.0, 1024.0, 0.1
MEMORY = "memory of all processes"
PART = Part(
    "valid requests at their limits from one address, and a second caller who asks 5 times a second",
    "the second caller: at least 99 % answered, p99 at most 3 times quiet; at most 1 s of CPU time after "
    "the last deadline; memory at most rest + 1 GiB, and within 10 % of rest after 60 s",
    ("answered", "p99_x", "slowest_s", "cpu_s", "peak_mib", "senders_got"),
)


async def run(stage: Stage) -> None:
    """First without `auth`, as a server is by default, then with a token for each of the two callers."""
    for auth in (False, True):
        await suite(stage, auth)


WITH_TOKENS = ("numbers", "silent")
"""What the short form sends to a server with `auth`, too: callers without a token that is known."""


def attacks(stage: Stage, auth: bool) -> Iterator[tuple[str, str]]:
    """Names of attacks, each with the path it is limited to."""
    is_short = auth and not stage.form.whole_suite
    yield from ((name, "") for name in (WITH_TOKENS if is_short else ATTACKS))
    if stage.form.whole_suite:
        yield from (("silent", path) for path in predicting_paths())


async def suite(stage: Stage, auth: bool) -> None:
    suffix = ", with tokens" if auth else ""
    rows = {" ".join(filter(None, each)) + suffix: each for each in attacks(stage, auth)}
    if all(stage.has(what) for what in (*rows, MEMORY + suffix)):
        return
    callers = Callers.new(stage.folder / "tokens.json") if auth else Callers()
    sections = {"auth": {"tokens_file": callers.file}} if auth else {}
    server, _ = await stage.start([{**ALONE, "admission": ROOM}, PICTURES], **sections)
    before = await rest(server, callers)
    rest_mib = peak_mib = sum(before.values())
    for what, (name, path) in rows.items():
        if not stage.has(what):
            peak_mib = max(peak_mib, await beside(stage, what, name, path, callers))
    await asyncio.sleep(REST_S)
    after = await asyncio.to_thread(memory_by_process, server)
    after_mib = sum(after.values())
    figures = {"peak_mib": round(peak_mib), "senders_got": "-"}
    is_met = peak_mib <= rest_mib + MAX_MIB and after_mib <= rest_mib * (1 + MAX_KEPT)
    most = max(after, key=lambda name: after[name] - before.get(name, 0.0))
    told = f"{rest_mib:.0f} MiB at rest, {after_mib:.0f} MiB {REST_S:g} s after the last"
    told += f"; most in {most}: {before.get(most, 0):.0f}, then {after[most]:.0f}"
    stage.add(MEMORY + suffix, figures, is_met, told)
    stage.end()


@dataclass(frozen=True, slots=True)
class Callers:
    """The tokens of the one who sends at the limits and of the second caller; "" without `auth`."""

    sender: str = ""
    second: str = ""
    file: str = ""

    @classmethod
    def new(cls, file: Path) -> "Callers":
        tokens = [f"fewshard_{secrets.token_urlsafe(32)}" for _ in range(2)]
        entries = [
            {"name": name, "sha256": hashlib.sha256(token.encode()).hexdigest(), "scopes": ["predict"]}
            for name, token in zip(("sender", "second"), tokens, strict=True)
        ]
        file.write_text(json.dumps({"tokens": entries}), encoding="utf-8")
        return cls(*tokens, str(file))


async def rest(server: Server, callers: Callers) -> dict[str, float]:
    """Return the memory of a server that has been asked before, by process."""
    async with probing(server, callers):
        await asyncio.sleep(5.0)
    await asyncio.sleep(2.0)
    return await asyncio.to_thread(memory_by_process, server)


def probing(server: Server, callers: Callers) -> Probes:
    return Probes(server.url, {"alone": classify("alone")}, RATE, callers.second)


async def beside(stage: Stage, what: str, name: str, path: str, callers: Callers) -> float:
    """Measure a second caller quietly and beside one attack. Return the peak of memory in MiB."""
    server, seconds = stage.server, stage.form.seconds
    assert server is not None
    async with probing(server, callers) as probes, watching(server) as memory:
        cpu_s, began_at = cpu_seconds(server.process.pid), time.monotonic()
        await asyncio.sleep(seconds)
        quiet_cpu = (cpu_seconds(server.process.pid) - cpu_s) / (time.monotonic() - began_at)
        async with attacking(stage, name, path, callers) as attack:
            attacked_at = time.monotonic()
            await asyncio.sleep(seconds + DEADLINE_S)
            ended_at, cpu_s = time.monotonic(), cpu_seconds(server.process.pid)
            answers, _ = await attack.communicate()
            await asyncio.sleep(max(0.0, ended_at + AFTER_S - time.monotonic()))
        passed_s = time.monotonic() - ended_at
        cpu_s = cpu_seconds(server.process.pid) - cpu_s - quiet_cpu * passed_s
    quiet, seen = probes.seen(before=began_at + seconds), probes.seen(attacked_at, ended_at)
    _add(stage, what, quiet, seen, round(cpu_s, 2), max(memory), json.loads(answers or b'{"failed": 1}'))
    return max(memory)


def _add(
    stage: Stage, what: str, quiet: Seen, seen: Seen, cpu_s: float, peak_mib: float, answers: dict[str, int]
) -> None:
    ratio = round(seen.p99_ms / max(quiet.p99_ms, 0.1), 1)
    share = 1 - seen.failed / max(seen.sent, 1)
    is_met = share >= MIN_SHARE and ratio <= MAX_P99 and cpu_s <= MAX_CPU_S
    got = ", ".join(f"{count} x {answer}" for answer, count in sorted(answers.items()))
    figures = {
        "answered": f"{seen.sent - seen.failed} of {seen.sent}",
        "p99_x": ratio,
        "slowest_s": seen.slowest_s,
        "cpu_s": cpu_s,
        "peak_mib": round(peak_mib),
        "senders_got": got or "nothing",
    }
    told = f"p99 {quiet.p99_ms:g} ms quiet, {seen.p99_ms:g} ms beside"
    stage.add(what, figures, is_met, f"{told}; second caller: {seen.told}" if seen.failed else told)


@asynccontextmanager
async def attacking(
    stage: Stage, name: str, path: str = "", callers: Callers = Callers()
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run an attack until the block ends, in a process of its own, so that it does not delay the probes."""
    command = [name, "--port", str(stage.port), "--grpc-port", str(stage.port + 1)]
    command += ["--seconds", str(stage.form.seconds), "--token", callers.sender]
    command += ["--path", path] if path else []
    script = str(Path(__file__).with_name("chaos_attacks.py"))
    process = await asyncio.create_subprocess_exec(
        sys.executable, script, *command, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        await process.stdout.readline()
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


@asynccontextmanager
async def watching(server: Server) -> AsyncIterator[list[float]]:
    """Measure the server's memory within the block, each second; the list grows."""
    found = [await asyncio.to_thread(memory_mib, server)]

    async def watch() -> None:
        while True:
            await asyncio.sleep(1.0)
            found.append(await asyncio.to_thread(memory_mib, server))

    task = asyncio.create_task(watch())
    try:
        yield found
    finally:
        task.cancel()


def memory_mib(server: Server) -> float:
    """Return the memory of all the server's processes in MiB, in which shared pages count once."""
    return sum(entry.pss_mib for entry in memory_of(server.process.pid))


def memory_by_process(server: Server) -> dict[str, float]:
    """Return the same by the names of the processes."""
    found: Counter[str] = Counter()
    for entry in memory_of(server.process.pid):
        found[entry.name] += entry.pss_mib
    return dict(found)
