"""Sends SIGTERM to a server in eight states; a part of `server_chaos`."""

import asyncio
import os
import subprocess
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from chaos_limits import attacking
from chaos_probes import Probes, classify
from chaos_server import until
from chaos_stage import ALONE, GONE_S, PICTURES, STOP_S, Stage
from chaos_table import Part

MODELS = (ALONE, PICTURES)
LOAD = 20.0
WAIT_S = 60.0
SMALL_BYTES = 96 * 2**20
SMALL = ("unshare", "-m", "sh", "-c", f'mount -t tmpfs -o size={SMALL_BYTES} tmpfs /tmp && exec "$@"', "sh")
"""Runs a command in a name space of its own, whose /tmp is small; root may do so."""
PART = Part(
    "SIGTERM in eight states",
    f"the end within {STOP_S:g} s, the deadline + 5 s, and nothing left {GONE_S:g} s later",
    ("exit_code", "ended_s", "lost", "left"),
)
State = Callable[[Stage, AsyncExitStack], Awaitable[Probes | None]]
"""Brings a server into a state. Returns the load, where there is one."""


async def run(stage: Stage) -> None:
    for what, state in STATES.items():
        if stage.has(what):
            continue
        async with AsyncExitStack() as stack:
            try:
                load = await state(stage, stack)
            except NotHere as error:
                stage.add(what, {}, None, str(error))
                continue
            await stop(stage, what, load)
        stage.end()


async def stop(stage: Stage, what: str, load: Probes | None) -> None:
    server = stage.server
    assert server is not None
    traces, asked_at = server.traces(), time.monotonic()
    if server.process.poll() is None:
        server.process.terminate()
    has_ended = await until(lambda: server.process.poll() is not None, WAIT_S)
    ended_s = round(time.monotonic() - asked_at, 1) if has_ended else None
    await until(lambda: not server.left(traces), GONE_S)
    left = server.left(traces)
    lost = load.seen(before=asked_at).lost if load else 0
    figures = {"exit_code": server.process.returncode, "ended_s": ended_s, "lost": lost}
    is_met = ended_s is not None and ended_s <= STOP_S and not left and not lost
    stage.add(
        what, {**figures, "left": ", ".join(left)}, is_met, "" if has_ended else f"not within {WAIT_S:g} s"
    )


class NotHere(Exception):
    """This state cannot be had on this machine."""


async def quiet(stage: Stage, _: AsyncExitStack) -> None:
    await stage.start(MODELS)


async def load(stage: Stage, stack: AsyncExitStack) -> Probes:
    server, _ = await stage.start(MODELS)
    probes = await stack.enter_async_context(Probes(server.url, {"alone": classify("alone")}, LOAD))
    await asyncio.sleep(3.0)
    return probes


async def loading(stage: Stage, _: AsyncExitStack) -> None:
    """As soon as there is a control store."""
    server = stage.begin(MODELS)
    await until(lambda: "GCS" in server.roles(), WAIT_S)


async def preparing(stage: Stage, stack: AsyncExitStack) -> None:
    """While images at their limits are decoded."""
    await stage.start(MODELS)
    await stack.enter_async_context(attacking(stage, "images"))
    await asyncio.sleep(3.0)


async def controller_stopped(stage: Stage, _: AsyncExitStack) -> None:
    server, _ready_s = await stage.start(MODELS)
    server.roles()["controller"][0].suspend()
    await asyncio.sleep(5.0)


async def raylet_dead(stage: Stage, _: AsyncExitStack) -> None:
    await _kill(stage, "raylet")


async def gcs_dead(stage: Stage, _: AsyncExitStack) -> None:
    await _kill(stage, "GCS")


async def _kill(stage: Stage, role: str) -> None:
    server, _ = await stage.start(MODELS)
    server.roles()[role][0].kill()
    await asyncio.sleep(0.2)


async def disk_full(stage: Stage, _: AsyncExitStack) -> None:
    """After the server's file system has been filled, while it serves."""
    if subprocess.run([*SMALL, "true"], capture_output=True, check=False).returncode != 0:
        raise NotHere("needs root, and the right to mount a file system of its own")
    # The server's files are outside /tmp, which it does not see.
    server = stage.begin(MODELS, SMALL)
    await server.ready()
    _fill(Path(f"/proc/{server.process.pid}/root/tmp/filling"))
    await asyncio.sleep(3.0)


def _fill(file: Path) -> None:
    with file.open("wb", buffering=0) as filling, suppress(OSError):
        while True:
            filling.write(b"\0" * 2**20)
    assert os.statvfs(file).f_bavail * os.statvfs(file).f_frsize < 2**20


STATES: dict[str, State] = {
    "quiet": quiet,
    f"under {LOAD:g} requests a second": load,
    "while it starts": loading,
    "preparing large images": preparing,
    "controller stopped": controller_stopped,
    "raylet dead": raylet_dead,
    "GCS dead": gcs_dead,
    "disk full": disk_full,
}
