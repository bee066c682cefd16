"""Everything that may happen to a server, under load, over HTTP: part of `make chaos`, or see --help.

Starts `fewshard serve` with small models, then kills replicas, updates a model, lets a load double, floods,
sends slowly, mixes good and bad, and at last drains. Prints a table of requests sent, answered, refused and
lost, with --out also as JSON; exits with 1 where one was lost. No client sends anything twice.
"""

import argparse
import asyncio
import json
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from chaos_load import Load, Server, Tally, client, running

SHARE = 0.6
"""The load, as a share of what one replica sustains."""
SIZES = (200, 8_000, 200_000)
NUM_SLOW = 30
NUM_FLOODING = 200
NUM_PUSHING, NUM_ITEMS = 8, 64
NUM_FLOOD_ITEMS = 16
ROOM = {"min_items": 16, "max_items": 64}
"""Admission limits of the model that is flooded."""
WAIT_S = 120.0


@dataclass(frozen=True, slots=True)
class Row:
    """The outcome of one disturbance.

    memory: growth of the server's private memory, as a share.
    """

    what: str
    sent: int
    answered: int
    refused: int
    lost: int
    worst_s: float
    memory: float | None
    remarks: str

    @classmethod
    def of(cls, what: str, tally: Tally, remarks: str = "", memory: float | None = None) -> "Row":
        lost = ", ".join(f"{count} {name}" for name, count in tally.lost.items())
        remarks = "; ".join(part for part in (remarks, lost) if part)
        counts = tally.sent, tally.answered, tally.refused, sum(tally.lost.values())
        return cls(what, *counts, round(tally.worst_s, 2), memory, remarks)


@dataclass
class Chaos:
    """The server and its load. `rate` requests a second are 60 % of one replica's maximum by default."""

    server: Server
    rate: float
    seconds: float

    @asynccontextmanager
    async def load(self, model: str, rate: float, num_bytes: int = 200) -> AsyncIterator[Tally]:
        """Send a steady load while the body runs."""
        load, stop = Load(self.server, model, num_bytes), asyncio.Event()
        sending = asyncio.create_task(load.steady(rate, stop))
        try:
            yield load.tally
        finally:
            stop.set()
            await sending

    async def until(self, condition: Callable[[], bool]) -> float:
        """Return the seconds until the condition holds."""
        began_at = time.monotonic()
        while not await asyncio.to_thread(condition):
            if time.monotonic() - began_at > WAIT_S:
                raise RuntimeError(f"waited {WAIT_S:g} s in vain:\n{self.server.said[-3000:]}")
            await asyncio.sleep(0.3)
        return time.monotonic() - began_at


async def kill(chaos: Chaos) -> list[Row]:
    """Send SIGKILL to one of two replicas, with bodies of three sizes."""
    rows = []
    for num_bytes in SIZES:
        async with chaos.load("twice", chaos.rate, num_bytes) as tally:
            await asyncio.sleep(chaos.seconds / 3)
            chaos.server.replicas("twice")[0].kill()
            await asyncio.sleep(chaos.seconds)
            back_s = await chaos.until(lambda: chaos.server.num_ready("twice") == 2)
        remarks = f"two replicas again after {chaos.seconds + back_s:.0f} s at the latest"
        rows.append(Row.of(f"kill -9 one of two, {num_bytes / 1000:g} KB", tally, remarks))
    return rows


async def update(chaos: Chaos) -> list[Row]:
    """Change the file and send SIGHUP. Both replicas are replaced."""
    model = next(one for one in chaos.server.config["models"] if one["name"] == "twice")
    before = {one.pid for one in chaos.server.replicas("twice")}
    async with chaos.load("twice", chaos.rate) as tally:
        await asyncio.sleep(chaos.seconds / 3)
        model["batching"] = {"max_wait_ms": 0.5}
        chaos.server.write()
        chaos.server.process.send_signal(signal.SIGHUP)
        took_s = await chaos.until(lambda: "updated twice" in chaos.server.said)
        await asyncio.sleep(chaos.seconds / 3)
    kept = before & {one.pid for one in chaos.server.replicas("twice")}
    return [Row.of("rolling update", tally, f"took {took_s:.0f} s, {len(kept)} old replicas left")]


async def scale(chaos: Chaos) -> list[Row]:
    """Scale from one replica to two and back."""
    load, counts = Load(chaos.server, "elastic", num_items=NUM_ITEMS), []
    counts.append(chaos.server.num_ready("elastic"))
    pushing = asyncio.create_task(_push(load, stop := asyncio.Event()))
    up_s = await chaos.until(lambda: chaos.server.num_ready("elastic") == 2)
    await asyncio.sleep(chaos.seconds / 3)
    stop.set()
    await pushing
    counts.append(chaos.server.num_ready("elastic"))
    still = asyncio.Event()
    trickle = asyncio.create_task(load.steady(0.5, still))
    down_s = await chaos.until(lambda: len(chaos.server.replicas("elastic")) == 1)
    still.set()
    await trickle
    counts.append(chaos.server.num_ready("elastic"))
    remarks = f"{' -> '.join(map(str, counts))} replicas; up in {up_s:.0f} s, down in {down_s:.0f} s"
    return [Row.of("load grows and falls", load.tally, remarks)]


async def _push(load: Load, stop: asyncio.Event) -> None:
    while not stop.is_set():
        await load.closed(NUM_PUSHING, 1.0)


async def flood(chaos: Chaos) -> list[Row]:
    """Send very many requests from one address, beside a caller at another that sends few."""
    flooding, stop = (
        Load(chaos.server, "alone", address="127.0.0.2", num_items=NUM_FLOOD_ITEMS),
        asyncio.Event(),
    )
    other = Load(chaos.server, "alone")
    sending = asyncio.create_task(other.steady(5.0, stop))
    await flooding.closed(NUM_FLOODING, chaos.seconds)
    stop.set()
    await sending
    return [Row.of("the flood", flooding.tally), Row.of("a caller beside it", other.tally)]


async def slow(chaos: Chaos) -> list[Row]:
    """Send single bytes slowly, in the headers or in the body."""
    cut = 0

    async def drip(head: bytes) -> None:
        nonlocal cut
        port = chaos.server.config["server"]["port"]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for byte in head:
                writer.write(bytes([byte]))
                await asyncio.wait_for(reader.read(1), 1.0) if byte == 0 else await asyncio.sleep(0.2)
                if reader.at_eof() or writer.is_closing():
                    break
            answer = await asyncio.wait_for(reader.read(), WAIT_S)
            cut += not answer or b" 408 " in answer[:20]
        except ConnectionError:
            cut += 1
        finally:
            writer.close()

    path = b"POST /v2/models/twice/classify HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\n"
    async with chaos.load("twice", chaos.rate) as tally:
        heads = [path + b"{" * 50 if number % 2 else path[:60] for number in range(NUM_SLOW)]
        await asyncio.gather(*(drip(head) for head in heads))
    return [Row.of("slow clients beside the load", tally, f"{cut} of {NUM_SLOW} slow clients cut")]


BAD: tuple[tuple[str, bytes, int], ...] = (
    ("/v2/models/twice/classify", b"{", 400),
    ("/v2/models/twice/classify", b'{"inputs": 7}', 400),
    ("/v2/models/twice/infer", b'{"inputs": [{"name": "text", "shape": [-1], "datatype": "BYTES"}]}', 400),
    ("/v2/models/nobody/classify", b'{"inputs": "x"}', 404),
    ("/classify", b'{"model": "twice"}', 400),
    ("/nothing", b"", 404),
)


async def soak(chaos: Chaos) -> list[Row]:
    """Send good and bad requests together. Compare memory at the end with that after the first third."""
    bad, stop = Tally(), asyncio.Event()
    async with chaos.load("twice", chaos.rate) as good:
        sending = asyncio.create_task(_send_bad(chaos, bad, stop))
        await asyncio.sleep(chaos.seconds)
        before_mb = await asyncio.to_thread(chaos.server.memory_mb)
        await asyncio.sleep(2 * chaos.seconds)
        after_mb = await asyncio.to_thread(chaos.server.memory_mb)
        stop.set()
        await sending
    growth = round(after_mb / before_mb - 1, 4)
    remarks = f"{before_mb:.0f} MB, then {after_mb:.0f} MB"
    return [Row.of("soak, good requests", good, remarks, growth), Row.of("soak, bad ones, as told", bad)]


async def _send_bad(chaos: Chaos, tally: Tally, stop: asyncio.Event) -> None:
    async with client() as session:
        while not stop.is_set():
            for path, body, wanted in BAD:
                answer: int | str
                try:
                    answer = (await session.post(chaos.server.url + path, content=body)).status_code
                except httpx.HTTPError as error:
                    answer = type(error).__name__
                tally.count(answer, wanted, 0.0)
            await asyncio.sleep(0.1)


async def drain(chaos: Chaos) -> list[Row]:
    """Send SIGTERM under load. Earlier requests must be answered; later ones may be refused."""
    load, stop = Load(chaos.server, "twice"), asyncio.Event()
    sending = asyncio.create_task(load.steady(chaos.rate, stop))
    await asyncio.sleep(chaos.seconds / 3)
    chaos.server.process.send_signal(signal.SIGTERM)
    status = await asyncio.to_thread(chaos.server.process.wait, WAIT_S)
    stop.set()
    await sending
    closed = load.tally.lost.pop("ConnectError", 0)
    load.tally.refused += closed
    return [Row.of("drain on SIGTERM", load.tally, f"exit code {status}, {closed} found the port closed")]


PARTS: dict[str, Callable[[Chaos], Awaitable[list[Row]]]] = {
    part.__name__: part for part in (kill, update, scale, flood, slow, soak, drain)
}


def config(options: argparse.Namespace) -> dict[str, Any]:
    names = {"twice": {"min": 2}, "alone": {"min": 1}}
    if "scale" in options.parts:
        elastic = {"min": 1, "max": 2, "target_items": 64.0, "scale_up_s": 2.0, "scale_down_s": 5.0}
        names["elastic"] = elastic
    models: list[dict[str, Any]] = [
        {"name": name, "path": options.path, "replicas": counts} for name, counts in names.items()
    ]
    models[1]["admission"] = ROOM
    return {"models": models, "server": {"port": options.port, "grpc_port": 0}}


async def run(options: argparse.Namespace, server: Server) -> list[Row]:
    rate = options.rate
    if not rate:
        await Load(server, "alone").closed(16, 1.0)
        rate = SHARE * await Load(server, "alone").closed(16, min(5.0, options.seconds))
    print(f"{rate:.0f} requests a second", file=sys.stderr, flush=True)
    rows: list[Row] = []
    for name in PARTS:
        if name in options.parts:
            print(f"{name} ...", file=sys.stderr, flush=True)
            rows += await PARTS[name](Chaos(server, rate, options.seconds))
    return rows


def as_markdown(rows: list[Row]) -> str:
    lines = ["| what | sent | answered | refused | lost | worst s | memory | |", "|" + " --- |" * 8]
    for row in rows:
        memory = "" if row.memory is None else f"{row.memory:+.1%}"
        cells = [*list(asdict(row).values())[:6], memory, row.remarks]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--path", default="zoo:sst2-moe", help="a text checkpoint (zoo:sst2-moe)")
    parser.add_argument(
        "--parts", type=lambda text: text.split(","), default=list(PARTS), help=",".join(PARTS)
    )
    parser.add_argument(
        "--rate", type=float, default=0.0, help="requests a second (60 %% of one replica's best)"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of a phase; a soak lasts three (10)")
    parser.add_argument("--port", type=int, default=8140)
    parser.add_argument("--out", type=Path, help="write the table as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), config(options)) as server:
        rows = asyncio.run(run(options, server))
    print(as_markdown(rows))
    if options.out:
        options.out.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")
    return 1 if any(row.lost for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
