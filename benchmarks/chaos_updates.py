"""Updates a model that is served to ones that cannot answer, beside probes; a part of `server_chaos`."""

import asyncio
import json
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from chaos_probes import Probes, classify
from chaos_server import Server, until
from chaos_stage import ALONE, Stage
from chaos_table import Part
from safetensors.numpy import load_file, save_file

from fewshard_models.checkpoint import resolve

MODEL = {**ALONE, "replicas": {"min": 1}}
ROLE = "models' process of alone"
TAKEN = "updated alone"
OUTCOMES = (TAKEN, "not updated", "nothing has changed")
GIVE_UP_S = 180.0
HELD_S = 30.0
LAST_S = 5.0
PART = Part(
    "updates of a model that answers to one that cannot",
    "none is taken over, and no probe fails",
    ("times", "taken_over", "failed_s", "lost", "slowest_s"),
)


async def run(stage: Stage) -> None:
    ways = [*SPOILS, *HOLDS]
    for number, way in enumerate(ways):
        times = len(range(number, stage.form.updates, len(ways)))
        if times and not stage.has(way):
            await updates(stage, way, times)


async def updates(stage: Stage, way: str, times: int) -> None:
    """Update so many times, and go back where the model was taken over."""
    server, _ = await stage.start([MODEL])
    num_taken, said = 0, ""
    async with Probes(server.url, {"alone": classify("alone")}) as probes:
        await asyncio.sleep(1.0)
        for number in range(times):
            folder = copy(stage.folder / f"{way.replace(' ', '-')}-{number}")
            SPOILS.get(way, _leave)(folder)
            is_taken, said = await update(server, str(folder), HOLDS.get(way))
            await asyncio.sleep(LAST_S)
            num_taken += is_taken
            if is_taken and number + 1 < times:
                await update(server, MODEL["path"], None)
    seen = probes.seen()
    names = ("failed_s", "lost", "slowest_s")
    figures = {"times": times, "taken_over": num_taken, **{name: getattr(seen, name) for name in names}}
    stage.add(way, figures, not num_taken and not seen.failed, said)
    stage.end()


async def update(
    server: Server, path: str, hold: Callable[[psutil.Process], None] | None
) -> tuple[bool, str]:
    """Update to a model. Return whether it was taken over while it could not answer, and what was said.

    hold: done to each new process of the model, for `HELD_S` seconds.
    """
    known, before = set(server.roles().get(ROLE, ())), len(server.said)
    server.config["models"][0]["path"] = path
    server.write()
    server.process.send_signal(signal.SIGHUP)

    def outcome() -> str:
        return next((words for words in OUTCOMES if words in server.said[before:]), "")

    held: set[psutil.Process] = set()
    until_held = time.monotonic() + (HELD_S if hold else 0.0)
    while hold and time.monotonic() < until_held and not outcome():
        for one in set(server.roles().get(ROLE, ())) - known - held:
            held.add(one)
            with suppress(psutil.Error):
                hold(one)
        await asyncio.sleep(0.2)
    is_taken = outcome() == TAKEN
    for one in held:
        with suppress(psutil.Error):
            one.resume()
    await until(outcome, GIVE_UP_S, 0.5)
    lines = [line for line in server.said[before:].splitlines() if any(words in line for words in OUTCOMES)]
    told = (
        lines[0].split(";")[0].split(": Failed")[0] if lines else f"nothing was said within {GIVE_UP_S:g} s"
    )
    return (is_taken if hold else outcome() == TAKEN), told


def copy(folder: Path) -> Path:
    """Copy the model without its card, so that it has no golden inputs, like any plain checkpoint."""
    shutil.copytree(resolve(MODEL["path"]), folder, ignore=shutil.ignore_patterns("card.json"))
    return folder


def _weights(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file)


def _nan(folder: Path) -> None:
    _weights(folder, lambda weights: weights["classifier.weight"].fill(np.nan))


def _infinite(folder: Path) -> None:
    _weights(folder, lambda weights: weights["classifier.bias"].fill(np.inf))


def _few_words(folder: Path) -> None:
    """Leave embeddings for the first words alone, of which no sentence is made: each input raises."""
    file, name = folder / "config.json", "embeddings.word_embeddings.weight"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "vocab_size": 8}))
    _weights(folder, lambda weights: weights.update({name: weights[name][:8].copy()}))


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _leave(_: Path) -> None:
    """The model is well; what happens to its process is not."""


SPOILS: dict[str, Callable[[Path], None]] = {
    "weights that are NaN": _nan,
    "a bias that is infinite": _infinite,
    "fails on every input": _few_words,
    "weights cut short": _cut,
    "no tokenizer": _no_tokenizer,
}
HOLDS: dict[str, Callable[[psutil.Process], None]] = {
    "its process hangs for 30 s": psutil.Process.suspend,
    "its process dies for 30 s": psutil.Process.kill,
}
