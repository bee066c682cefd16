"""Kills and stops the shards of a served model, many times, beside a steady load: see --help.

A server has a small MoE model over several shards, in one group or more; every group has a leader, which is
the replica that callers reach, and workers. Deeds are drawn by a seed: SIGKILL or SIGSTOP to a worker or a
leader, to two at once, or to another one while the group recovers. The load is a share of what the survivors
of a kill sustain, at fixed times, whether or not earlier requests are answered. Every answer is compared with
the unsharded model's. The next deed waits until every group is whole.

The table is kept after every deed as JSON and Markdown. Ctrl-C or SIGTERM ends the run and the server; with
--resume it goes on after the last row. Traffic stays on this machine's loopback.
"""

import argparse
import asyncio
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from chaos import Expected, sentences
from chaos_server import Server
from chaos_table import Part, Row, Table
from shard_load import Callers, figures, halted_s

from fewshard_loadtest.peers.machine import cpu_slug

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs"
MODEL = "moe"
LEADER, WORKER = f"replica of {MODEL}", "shard"
SHARE = 0.6
MAX_STALL_S = 1.0
LEAD_S, TAIL_S = 1.0, 2.0
"""Seconds of load before a deed, and after the groups are whole again."""
WHOLE_S = 300.0
CAPACITY_S = 10.0
"""How long it is measured what the survivors sustain."""
NUM_TEXTS = 60
PART = Part(
    "kills and stops of shards",
    f"nothing failed, nothing wrong, no answer later than {MAX_STALL_S:g} s",
    ("sent", "failed", "wrong", "slowest_s", "silent_s", "halted_s", "whole_s", "rate"),
)


@dataclass(frozen=True, slots=True)
class Blow:
    """One signal. `role` is `LEADER` or `WORKER`; `after_s`: seconds since the first blow of its deed."""

    role: str
    is_stop: bool
    after_s: float = 0.0

    def __str__(self) -> str:
        who, when = ("leader" if self.role == LEADER else "worker"), self.after_s
        later = f" after {when:.1f} s" if when else ""
        return f"{'SIGSTOP' if self.is_stop else 'SIGKILL'} {who}{later}"


def drawn(seed: int, number: int, num_groups: int, shards: int) -> list[Blow]:
    """Return the blows of a deed: one in 60 %, two at once in 25 %, one and another a little later in 15 %.

    A quarter hit a leader, half are stops. Not every leader is hit, if there are several, and at most as many
    workers as a group has without its leader.
    """
    chance = random.Random(f"{seed} {number}")
    kind = chance.choices(["one", "two", "later"], [60, 25, 15])[0]
    blows: list[Blow] = []
    for place in range(1 if kind == "one" else 2):
        hits_leader = chance.random() < 0.25 and not any(blow.role == LEADER for blow in blows)
        role = LEADER if hits_leader or num_groups * (shards - 1) <= place else WORKER
        after_s = round(chance.uniform(0.1, 3.0), 1) if kind == "later" and place else 0.0
        blows.append(Blow(role, chance.random() < 0.5, after_s))
    return blows


def is_met(found: dict[str, Any]) -> bool:
    no_loss = found["sent"] > 0 and found["failed"] == found["wrong"] == 0
    return no_loss and found["slowest_s"] <= MAX_STALL_S and found["whole_s"] is not None


class Groups:
    """The processes of a server's groups, and whether all are at work."""

    def __init__(self, server: Server, num_groups: int, shards: int) -> None:
        self._server, self._num_groups, self._shards = server, num_groups, shards
        self._client = httpx.AsyncClient(timeout=5.0)
        self.victims: list[psutil.Process] = []

    async def strike(self, blow: Blow, chance: random.Random) -> None:
        """Send the signal to one living process of the role."""
        roles = await asyncio.to_thread(self._server.roles)
        found = [one for one in roles.get(blow.role, []) if one not in self.victims]
        if not found:  # the only one has not come back yet
            return
        victim = chance.choice(found)
        self.victims.append(victim)
        with suppress(psutil.Error):
            victim.suspend() if blow.is_stop else victim.kill()

    async def are_whole(self) -> bool:
        """Return whether the victims are gone, others are in their places, and every group has all shards."""
        if await self._sizes() != [float(self._shards)] * self._num_groups:
            return False  # but a group may not have noticed yet
        roles = await asyncio.to_thread(self._server.roles)
        wanted = {WORKER: self._num_groups * (self._shards - 1), LEADER: self._num_groups}
        here = {role: set(roles.get(role, ())) for role in wanted}
        return all(
            len(here[role]) == count and here[role].isdisjoint(self.victims) for role, count in wanted.items()
        )

    async def _sizes(self) -> list[float]:
        try:
            text = (await self._client.get(f"{self._server.url}/metrics")).text
        except httpx.HTTPError:
            return []
        lines = (line for line in text.splitlines() if line.startswith("fewshard_group_size{"))
        return [float(line.rpartition(" ")[2]) for line in lines]

    async def whole_again(self, since: float) -> float | None:
        """Return the seconds until every group was whole; None if that took too long."""
        while time.monotonic() < since + WHOLE_S:
            if await self.are_whole():
                return time.monotonic() - since
            await asyncio.sleep(0.25)
        return None


class Run:
    """One server and its table."""

    def __init__(self, options: argparse.Namespace, table: Table, server: Server, expected: Expected) -> None:
        self._options, self._table, self._server, self._expected = options, table, server, expected
        self._groups = Groups(server, options.groups, options.shards)

    async def all(self) -> None:
        rate = self._options.rate or SHARE * await self._sustained()
        for number in range(1, self._options.kills + 1):
            blows = drawn(self._options.seed, number, self._options.groups, self._options.shards)
            what = f"{number:03d} {', '.join(map(str, blows))}"
            if not self._table.has("kills", what):
                await self._deed(what, blows, rate, random.Random(number))

    async def _sustained(self) -> float:
        """Return the answers a second that the survivors of a killed worker give."""
        async with Callers(self._server.url, MODEL, self._expected) as callers:
            await callers.capacity(LEAD_S)
            await self._groups.strike(Blow(WORKER, is_stop=False), random.Random(0))
            rate = await callers.capacity(CAPACITY_S)
        if await self._groups.whole_again(time.monotonic()) is None:
            raise RuntimeError("the group has not become whole again")
        self._tell(f"the survivors sustain {rate:.1f} requests/s")
        return rate

    async def _deed(self, what: str, blows: Sequence[Blow], rate: float, chance: random.Random) -> None:
        self._groups.victims.clear()
        stop, said = asyncio.Event(), len(self._server.said)
        async with Callers(self._server.url, MODEL, self._expected) as callers:
            sending = asyncio.create_task(callers.steady(rate, stop))
            await asyncio.sleep(LEAD_S)
            since = time.monotonic()
            for blow in blows:
                await asyncio.sleep(max(0.0, since + blow.after_s - time.monotonic()))
                await self._groups.strike(blow, chance)
            whole_s = await self._groups.whole_again(since)
            await asyncio.sleep(TAIL_S)
            stop.set()
            answers = await sending
        found = {**figures(answers, since, rate, whole_s), "halted_s": halted_s(self._server.said[said:])}
        others = Counter(one.outcome for one in answers if one.outcome not in ("ok", "wrong"))
        remark = ", ".join(f"{count} x {name}" for name, count in sorted(others.items()))
        row = self._table.add("kills", what, found, is_met(found), remark)
        self._tell(f"{what}: {told(row)}")
        if whole_s is None:
            raise RuntimeError("the groups have not become whole again; the server's log says why")

    def _tell(self, words: str) -> None:
        print(words, file=sys.stderr, flush=True)


def told(row: Row) -> str:
    return ", ".join(f"{key} {value}" for key, value in row.figures.items())


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Return what all rows together say."""
    seen = [row.figures for row in rows]
    return {
        "deeds": len(seen),
        **{name: sum(each[name] for each in seen) for name in ("sent", "failed", "wrong")},
        "worst_stall_s": max((each["slowest_s"] for each in seen), default=0.0),
        "worst_halt_s": max((each["halted_s"] or 0.0 for each in seen), default=0.0),
        "median_stall_s": round(float(np.median([each["slowest_s"] for each in seen])), 3) if seen else 0.0,
    }


def main() -> int:
    options = _parse()
    names = ("seed", "shards", "groups", "path", "dtype")
    form = {name: getattr(options, name) for name in names}
    table = Table(options.out, {"kills": PART}, form, ["kills"], options.resume, "shard-kills")
    # SIGTERM ends this as Ctrl-C does: with the server.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    RUNS.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="shard-kills-", dir=RUNS))
    expected = Expected.of(options.path, sentences(NUM_TEXTS), options.dtype)
    server = Server(folder, config(options))
    end = partial(server.close)
    try:
        asyncio.run(server.ready())
        asyncio.run(Run(options, table, server, expected).all())
    except KeyboardInterrupt:
        print("interrupted; --resume goes on after the last row", file=sys.stderr)
        end = server.kill
        return 130
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        end()
    print(table.as_markdown())
    print(f"\n{summary(table.rows)}; the server's log is in {folder}")
    return 0 if all(row.met for row in table.rows) else 1


def config(options: argparse.Namespace) -> dict[str, Any]:
    """Return the server's configuration."""
    model = {
        "name": MODEL,
        "path": options.path,
        "dtype": options.dtype,
        "experts": {"shards": options.shards},
        "replicas": {"min": options.groups},
    }
    return {"models": [model], "server": {"port": options.port, "grpc_port": options.port + 1}}


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="deeds in all (100)")
    parser.add_argument("--seed", type=int, default=0, help="of the deeds (0)")
    parser.add_argument("--shards", type=int, default=4, help="processes of a group (4)")
    parser.add_argument("--groups", type=int, default=2, help="replicas; one is the others' stand-in (2)")
    parser.add_argument("--path", default="zoo:sst2-moe", help="an MoE checkpoint with two labels")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--rate", type=float, help="requests a second (60 %% of what survivors sustain)")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there already")
    parser.add_argument("--port", type=int, default=8150, help="and the next, for gRPC (8150)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/cpu" / cpu_slug(), help="a folder")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
