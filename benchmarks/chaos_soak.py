"""Good and bad requests for long, with kills among them; a part of `server_chaos`."""

import asyncio
import base64
import io
import json
import statistics
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path

import httpx
import psutil
from chaos_limits import memory_mib
from chaos_probes import REFUSALS, SENTENCE, best
from chaos_server import Server
from chaos_stage import ALONE, PICTURES, TWICE, Form, Stage
from chaos_table import Part
from PIL import Image

NUM_USERS = 16
CALL_TIMEOUT_S = 40.0
APART_S = 20.0
"""Between two kills, so that the next one finds a whole server."""
SAMPLE_S = 2.0
MAX_GROWTH = 0.01
WHAT = "the soak"
VICTIMS = ("replica of twice", "models' process of twice", "controller", "proxy", "HAProxyManager")
"""Killed in turn. HAProxy is not among them: it holds the connections, and what is on them ends with it."""
PART = Part(
    "good and bad requests for long, and kills among them",
    "none lost; memory grows by at most 1 % between the second and the last third",
    ("sent", "answered", "refused", "lost", "kills", "memory_mib", "growth", "seconds"),
)


@dataclass(frozen=True, slots=True)
class Ask:
    """A request, and the status that it must have."""

    path: str
    body: bytes
    wanted: int = 200


@dataclass
class Progress:
    """A soak so far; kept in a file, so that it can go on in another run.

    samples: for each server in turn, pairs of requests sent and MiB.
    """

    sent: int = 0
    answered: int = 0
    refused: int = 0
    lost: dict[str, int] = field(default_factory=dict)
    kills: int = 0
    seconds: float = 0.0
    samples: list[list[tuple[int, float]]] = field(default_factory=list)

    def count(self, outcome: int | str, wanted: int) -> None:
        self.sent += 1
        if outcome == wanted:
            self.answered += 1
        elif outcome in REFUSALS:
            self.refused += 1
        else:
            self.lost[f"{outcome} for {wanted}"] = self.lost.get(f"{outcome} for {wanted}", 0) + 1

    def thirds(self) -> tuple[float, float]:
        """Return the median memory of the second and of the last third of the longest run of one server."""
        run = max(filter(None, self.samples), key=lambda pairs: pairs[-1][0] - pairs[0][0])
        first, last = run[0][0], run[-1][0]
        places = [(3 * (sent - first) // (last - first + 1), mib) for sent, mib in run]
        middle, end = ([mib for place, mib in places if place == number] for number in (1, 2))
        return statistics.median(middle or [0.0]), statistics.median(end or [0.0])


async def run(stage: Stage) -> None:
    if stage.has(WHAT):
        return
    file = stage.kept / "chaos-soak.json"
    progress = Progress(**json.loads(file.read_text())) if file.exists() and stage.is_resumed else Progress()
    server, _ = await stage.start([TWICE, ALONE, PICTURES])
    progress.samples.append([])
    await soak(server, progress, stage.form, file)
    middle, end = progress.thirds()
    growth = round(end / middle - 1, 4) if middle else None
    names = ("sent", "answered", "refused", "kills")
    figures = {name: getattr(progress, name) for name in names} | {"lost": sum(progress.lost.values())}
    figures |= {"memory_mib": round(end), "growth": growth, "seconds": round(progress.seconds)}
    is_met = not progress.lost and growth is not None and growth <= MAX_GROWTH
    lost = ", ".join(f"{count} x {name}" for name, count in progress.lost.items())
    stage.add(WHAT, figures, is_met, lost)
    file.unlink(missing_ok=True)


async def soak(server: Server, progress: Progress, form: Form, file: Path) -> None:
    """Send until all requests of the form have been sent, those of earlier runs included."""
    asks, labels = cycle(requests()), dict[tuple[str, bytes], str]()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=NUM_USERS)
    async with httpx.AsyncClient(limits=limits, timeout=CALL_TIMEOUT_S) as client:

        async def user() -> None:
            while progress.sent < form.requests:
                ask = next(asks)
                progress.count(await outcome(client, server.url, ask, labels), ask.wanted)

        watching = asyncio.create_task(watch(server, progress, form, file))
        try:
            await asyncio.gather(*(user() for _ in range(NUM_USERS)))
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
            file.write_text(json.dumps(asdict(progress)), encoding="utf-8")


async def outcome(
    client: httpx.AsyncClient, url: str, ask: Ask, labels: dict[tuple[str, bytes], str]
) -> int | str:
    """Send a request once. Its label must be that of the first such request."""
    try:
        answer = await client.post(url + ask.path, content=ask.body)
        if answer.status_code == httpx.codes.OK:
            label = best(answer.json())
            return (
                answer.status_code
                if labels.setdefault((ask.path, ask.body), label) == label
                else "wrong label"
            )
        return answer.status_code
    except (httpx.HTTPError, ValueError) as error:
        return type(error).__name__


async def watch(server: Server, progress: Progress, form: Form, file: Path) -> None:
    """Note memory, keep the progress, and kill a process each time another share has been sent."""
    victims, noted_s = cycle(VICTIMS), time.monotonic()
    killed_at = noted_s
    while True:
        mib = await asyncio.to_thread(memory_mib, server)
        progress.samples[-1].append((progress.sent, round(mib, 1)))
        progress.seconds, noted_s = progress.seconds + time.monotonic() - noted_s, time.monotonic()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(progress)), encoding="utf-8")
        is_due = progress.sent >= (progress.kills + 0.5) * form.requests / form.kills
        if is_due and noted_s > killed_at + APART_S:
            for one in server.roles().get(next(victims), [])[:1]:
                with suppress(psutil.Error):
                    one.kill()
            progress.kills, killed_at = progress.kills + 1, noted_s
        await asyncio.sleep(SAMPLE_S)


def requests() -> list[Ask]:
    """Good and bad requests, each as often as any other."""
    twice, alone = (f"/v2/models/{name}" for name in ("twice", "alone"))
    text, texts = (json.dumps({"inputs": one}).encode() for one in (SENTENCE, [SENTENCE] * 8))
    tensor = {"name": "text", "datatype": "BYTES", "shape": [-1]}
    return [
        Ask(f"{twice}/classify", text),
        Ask(f"{alone}/classify", texts),
        Ask(f"{twice}/classify", b"{", 400),
        Ask(f"{twice}/predict", text),
        Ask("/v2/models/pictures/classify", json.dumps({"inputs": png()}).encode()),
        Ask(f"{twice}/classify", b'{"inputs": 7}', 400),
        Ask("/predict", json.dumps({"model": "alone", "inputs": SENTENCE}).encode()),
        Ask(f"{twice}/infer", json.dumps({"inputs": [tensor]}).encode(), 400),
        Ask(f"{twice}/classify", texts),
        Ask("/v2/models/nobody/classify", text, 404),
        Ask(f"{alone}/classify", text),
        Ask("/classify", b'{"model": "twice"}', 400),
        Ask(f"{twice}/classify", text),
        Ask("/nothing", b"", 404),
    ]


def png() -> str:
    """Return a small picture as base64."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 30, 30)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
