"""Kills what a server does not survive, and starts it again; a part of `server_chaos`."""

import time
from dataclasses import dataclass

from chaos_server import until
from chaos_stage import ALONE, GONE_S, READY_S, Stage
from chaos_table import Part

ROLES = ("launcher", "GCS", "raylet")
END_S = 40.0
PART = Part(
    "`fewshard serve` started again after kill -9",
    "each time processes and ports gone within 10 s, ready within 30 s, and then no work folder and nothing "
    "in /dev/shm left of the one before",
    ("times", "well", "gone_s", "ready_s"),
)


async def run(stage: Stage) -> None:
    for role in ROLES:
        if not stage.has(f"kill -9 {role}"):
            await restarts(stage, role)


@dataclass(frozen=True, slots=True)
class Restart:
    """One kill and the start after it.

    gone_s, ready_s: seconds until processes and ports were gone, and from the start until it was ready.
    ills: what was left, or kept it from starting.
    """

    gone_s: float
    ready_s: float
    ills: list[str]

    @property
    def is_well(self) -> bool:
        return not self.ills and self.gone_s <= GONE_S and self.ready_s <= READY_S


async def restarts(stage: Stage, role: str) -> None:
    """Kill and start again as often as the form says."""
    await stage.start([ALONE])
    found = [await restart(stage, role) for _ in range(stage.form.restarts)]
    num_well = sum(one.is_well for one in found)
    longest = {name: round(max(getattr(one, name) for one in found), 1) for name in ("gone_s", "ready_s")}
    figures = {"times": len(found), "well": num_well, **longest}
    ills = sorted({ill for one in found for ill in one.ills})
    stage.add(f"kill -9 {role}", figures, num_well == len(found), "; ".join(ills[:4]))
    stage.end()


async def restart(stage: Stage, role: str) -> Restart:
    """Kill a process of the server, wait until the rest has gone, and start the next as a supervisor does."""
    old, ills, ready_s = stage.server, [], READY_S
    assert old is not None
    traces = old.traces()
    old.roles()[role][0].kill()
    killed_at = time.monotonic()
    if not await until(lambda: not old.left(traces), END_S, 0.2):
        ills.append(f"left after {END_S:g} s: {', '.join(old.left(traces))}")
    gone_s = time.monotonic() - killed_at
    try:
        _, ready_s = await stage.start_beside([ALONE])
        ills += traces.files_left()
    except RuntimeError as error:
        ills.append(str(error).strip().splitlines()[-1])
        await stage.start([ALONE])
    old.kill()
    return Restart(gone_s, ready_s, ills)
