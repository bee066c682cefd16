"""Kills and stops every process of a server beside probes; a part of `server_chaos`."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil
from chaos_probes import Probes, Seen, Stream, classify
from chaos_server import Server, until
from chaos_stage import ALONE, GONE_S, PICTURES, TWICE, Stage
from chaos_table import Part

MODELS = (TWICE, ALONE, PICTURES)
STREAMS = {"twice": classify("twice"), "alone": classify("alone"), "gateway": Stream("/predict", "twice")}
"""A model with two replicas, one whose replica is the only one, and the gateway."""
FATAL = ("launcher", "GCS", "raylet", "agent")
"""Ray cannot replace these, and a raylet ends with its agents: the server must end."""
LEAD_S = 2.0
WHOLE_S = 60.0
AGAIN_S = 30.0
MAX_FAILED_S = 1.0
PART = Part(
    "every process of the server killed, stopped, and twice at once",
    "at most 1 s of failures, no answer later than its deadline + 1 s; where the launcher, GCS, raylet or "
    "an agent has died: the end with an exit code other than 0 within 10 s, and then nothing left after 10 s",
    ("sent", "failed_s", "lost", "late", "slowest_s", "whole_s", "exit_code", "ended_s", "gone_s"),
)


async def run(stage: Stage) -> None:
    server, _ = await stage.start(MODELS)
    await quiet(stage, server)
    roles = sorted(filter(_lasts, server.roles()), key=lambda role: (role in FATAL, role))
    for role in roles:
        for way in stage.form.ways:
            if role not in FATAL or way != "twice":
                await disturb(stage, f"{role}: {way}", [role], way)
    if "twice" in stage.form.ways:
        await disturb(stage, "GCS and raylet: kill", ["GCS", "raylet"], "kill")


async def quiet(stage: Stage, server: Server) -> None:
    """Send the probes while nothing happens: what fails here fails by itself."""
    if not stage.has("nothing"):
        async with Probes(server.url, STREAMS) as probes:
            await asyncio.sleep(stage.form.seconds)
        stage.add("nothing", _figures(probes.seen()), _is_met(probes.seen()))


@dataclass
class Deed:
    """What was done to a server, and what it did then, in seconds after it.

    counts: the processes of each role before.
    victims: the processes it was done to.
    ended_s: until the launcher ended.
    whole_s: until every role had as many processes again, without the victims.
    """

    server: Server
    counts: Counter[str]
    victims: list[psutil.Process]
    at: float
    ended_s: float | None = None
    whole_s: float | None = None
    remark: str = ""

    def is_whole(self) -> bool:
        roles = self.server.roles()
        here = {one for found in roles.values() for one in found}
        return not here & set(self.victims) and all(
            len(roles.get(role, ())) >= count for role, count in self.counts.items() if _lasts(role)
        )

    async def watch(self, seconds: float) -> None:
        """Look at the server for these seconds; less, where it ends."""
        while (passed_s := time.monotonic() - self.at) < seconds and self.ended_s is None:
            if self.server.process.poll() is not None:
                self.ended_s = round(passed_s, 1)
            elif self.whole_s is None and self.is_whole():
                self.whole_s = round(passed_s, 1)
            await asyncio.sleep(0.5)

    async def heals(self) -> bool:
        """Let stopped processes go on. Return whether the server answers then."""
        stopped = [one for one in self.victims if one.is_running()]
        for one in stopped:
            with suppress(psutil.Error):
                one.resume()
        self.victims = []
        if self.whole_s is None and not stopped and await until(self.is_whole, WHOLE_S, 0.5):
            self.whole_s = round(time.monotonic() - self.at, 1)
        async with Probes(self.server.url, STREAMS) as probes:
            return await until(lambda: probes.are_well(3.0), WHOLE_S, 1.0)


async def disturb(stage: Stage, what: str, roles: Sequence[str], way: str) -> None:
    """Do one thing to the processes of these roles beside probes, and add its row."""
    if stage.has(what):
        return
    server = stage.server or (await stage.start(MODELS))[0]
    counts = Counter({name: _number(name, len(found)) for name, found in server.roles().items()})
    traces = server.traces()
    async with Probes(server.url, STREAMS) as probes:
        await asyncio.sleep(LEAD_S)
        deed = Deed(server, counts, [], time.monotonic())
        for role in roles:
            await act(deed, role, way)
        await deed.watch(stage.form.seconds)
        if deed.ended_s is not None:
            gone = await until(lambda: not server.left(traces), GONE_S)
            gone_s = round(time.monotonic() - deed.at, 1)
    seen = probes.seen(deed.at)
    if deed.ended_s is None:
        await _survived(stage, what, roles, way, deed, seen)
        return
    figures = {"sent": seen.sent, "exit_code": server.process.returncode, "ended_s": deed.ended_s}
    is_met = set(roles) <= set(FATAL) and server.process.returncode != 0 and deed.ended_s <= GONE_S and gone
    left = f"left: {', '.join(server.left(traces))}"
    stage.add(what, {**figures, "gone_s": gone_s if gone else None}, is_met, deed.remark if gone else left)
    stage.end()


async def _survived(stage: Stage, what: str, roles: Sequence[str], way: str, deed: Deed, seen: Seen) -> None:
    is_fatal = way == "kill" and not set(roles).isdisjoint(FATAL)
    remarks = [deed.remark, seen.told]
    if is_fatal:
        remarks.append(f"the launcher has not ended within {stage.form.seconds:g} s")
    elif is_broken := not await deed.heals():
        remarks.append(f"does not answer {WHOLE_S:g} s later")
    figures = {**_figures(seen), "whole_s": deed.whole_s}
    stage.add(
        what, figures, not is_fatal and not is_broken and _is_met(seen), "; ".join(filter(None, remarks))
    )
    if is_fatal or is_broken or not deed.is_whole():
        stage.end()


async def act(deed: Deed, role: str, way: str) -> None:
    """Stop or kill one process of a role; or two at once, or the only one and at once its successor."""
    found = deed.server.roles().get(role, [])
    if not found:
        raise RuntimeError(f"there is no {role} any more")
    if way == "stop":
        found[0].suspend()
        deed.victims.append(found[0])
        return
    victims = found[: 2 if way == "twice" else 1]
    for one in victims:
        one.kill()
    deed.victims += victims
    if way == "twice" and len(victims) == 1:
        old = set(deed.victims)
        if await until(lambda: set(deed.server.roles().get(role, ())) - old, AGAIN_S):
            for successor in set(deed.server.roles().get(role, ())) - old:
                deed.victims.append(successor)
                successor.kill()
            deed.remark = "its successor, too"
        else:
            deed.remark = "no successor came"


def _number(role: str, found: int) -> int:
    """Return how many processes of a role a whole server has. An HAProxy's predecessor may be ending."""
    return 1 if role.startswith("HAProxy") else found


def _lasts(role: str) -> bool:
    """Return whether a whole server has this process; others come and go."""
    return role != "idle worker" and not role.startswith("other")


def _is_met(seen: Seen) -> bool:
    return seen.failed_s <= MAX_FAILED_S and seen.late == 0 and seen.sent > 0


def _figures(seen: Seen) -> dict[str, Any]:
    names = ("sent", "failed_s", "lost", "late", "slowest_s")
    return {name: getattr(seen, name) for name in names}
