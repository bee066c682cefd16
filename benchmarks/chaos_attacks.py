"""Sends valid requests at their limits from one address, in a process of its own; `chaos_limits` starts it.

    python benchmarks/chaos_attacks.py images --port 8140 --seconds 10

Connects to this machine's loopback alone, says "begun", begins no request after `--seconds`, and prints the
answers as JSON.
gRPC cannot choose its own address, so its calls come from 127.0.0.1. The server must have a text model called
`alone` and an image model called `pictures`.
"""

import argparse
import asyncio
import base64
import gzip
import io
import json
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

import grpc
import httpx
from PIL import Image

from fewshard_serve.http.routes import ROUTES
from fewshard_serve.http.routing import MODEL
from fewshard_serve.rpc.messages import CLASSES, SERVICE

ADDRESS = "127.0.0.2"
TEXTS, IMAGES = "alone", "pictures"
DEADLINE_S = 1.0
GIVE_UP_S = 20.0
"""How long after the last request answers are waited for."""
NUM_SILENT, SILENT_BYTES, BODY_BYTES = 600, 300_000, 1_000_000
NUM_IDLE = 4100
NUM_FLOODING, NUM_FLOOD_ITEMS = 100, 16
NUM_ZIPPED, NUM_VALUES, UNPACKED_BYTES = 60, 3_900_000, 31_000_000
NUM_CALLS, NUM_NUMBERS = 6, 30_000_000
LETTERS = "".join(random.Random(0).choices("abcdefgh", k=990_000))
CLASSIFY = f"/v2/models/{TEXTS}/classify"


@dataclass
class Attack:
    """Where to send, and what was answered so far, by status or failure.

    token: a bearer token; "" for none.
    """

    port: int
    grpc_port: int
    seconds: float
    token: str = ""
    answers: Counter[str] = field(default_factory=Counter)

    def begin(self) -> None:
        """Say that everything is prepared. From now on the seconds count."""
        self.stop_at = time.monotonic() + self.seconds
        print("begun", flush=True)

    @property
    def goes_on(self) -> bool:
        return time.monotonic() < self.stop_at

    async def requests(self, num_users: int, path: str, bodies: Iterable[tuple[bytes, bool]]) -> None:
        """Let each user send one body after the other, and wait where it is refused.

        bodies: each with whether it is packed.
        """
        following = cycle(bodies)
        self.begin()
        headers = {"Content-Type": "application/json", "X-Request-Timeout-Ms": str(round(1000 * DEADLINE_S))}
        headers |= {"Authorization": f"Bearer {self.token}"} if self.token else {}
        transport = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=None), local_address=ADDRESS)
        url = f"http://127.0.0.1:{self.port}{path}"
        async with httpx.AsyncClient(transport=transport, timeout=GIVE_UP_S, headers=headers) as client:

            async def user() -> None:
                while self.goes_on:
                    body, is_packed = next(following)
                    packed = {"Content-Encoding": "gzip"} if is_packed else {}
                    try:
                        answer = await client.post(url, content=body, headers=packed)
                    except httpx.HTTPError as error:
                        self.answers[type(error).__name__] += 1
                        await asyncio.sleep(1.0)
                        continue
                    self.answers[str(answer.status_code)] += 1
                    if not answer.is_success:
                        await asyncio.sleep(float(answer.headers.get("Retry-After", 1.0)))

            await asyncio.gather(*(user() for _ in range(num_users)))

    async def connections(self, count: int, open_one: Callable[[int], Awaitable[None]]) -> None:
        """Hold `count` connections, each opened again once it was closed."""
        self.begin()

        async def hold(number: int) -> None:
            while self.goes_on:
                with suppress(OSError, asyncio.TimeoutError):
                    async with asyncio.timeout(self.stop_at - time.monotonic()):
                        await open_one(number)
                await asyncio.sleep(0.5)

        await asyncio.gather(*(hold(number) for number in range(count)))


async def images(attack: Attack) -> None:
    """Images of 25 megapixels: 20, 60 and 200 in a request."""
    picture = png()
    bodies = [(json.dumps({"inputs": [picture] * count}).encode(), False) for count in (20, 60, 200)]
    await attack.requests(4, f"/v2/models/{IMAGES}/classify", bodies)


async def texts(attack: Attack) -> None:
    """Texts of a megabyte without blanks: 1, 15, and 30 packed by gzip."""
    bodies = [json.dumps({"inputs": [LETTERS] * count}).encode() for count in (1, 15, 30)]
    await attack.requests(
        4, CLASSIFY, [(bodies[0], False), (bodies[1], False), (gzip.compress(bodies[2], 1), True)]
    )


async def zipped(attack: Attack) -> None:
    """Bodies of 31 MB that are 45 KB packed, 60 at once."""
    await attack.requests(NUM_ZIPPED, f"/v2/models/{TEXTS}/infer", [(gzip.compress(numbers_body()), True)])


async def numbers(attack: Attack) -> None:
    """Calls of gRPC with 30 million numbers of one byte, six at once."""
    message = numbers_message()
    metadata = (("authorization", f"Bearer {attack.token}"),) if attack.token else ()
    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{attack.grpc_port}", options=options) as channel:
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        attack.begin()

        async def user() -> None:
            while attack.goes_on:
                try:
                    await call(message, timeout=GIVE_UP_S, metadata=metadata)
                    attack.answers["OK"] += 1
                except grpc.aio.AioRpcError as error:
                    attack.answers[error.code().name] += 1
                    await asyncio.sleep(1.0)

        await asyncio.gather(*(user() for _ in range(NUM_CALLS)))


async def silent(attack: Attack, path: str = "") -> None:
    """600 bodies that stop after 300 KB of 1 MB, with made-up tokens; at one path or spread over all."""
    paths = [path] if path else list(predicting_paths())

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", attack.port, local_addr=(ADDRESS, 0))
        try:
            head = (
                f"POST {paths[number % len(paths)]} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                f"Authorization: Bearer made-up-{number}\r\nContent-Length: {BODY_BYTES}\r\n\r\n"
            )
            writer.write(head.encode() + b" " * SILENT_BYTES)
            attack.answers[(await reader.readline())[9:12].decode() or "closed"] += 1
            await reader.read()
        finally:
            writer.close()

    await attack.connections(NUM_SILENT, one)


async def idle(attack: Attack) -> None:
    """4,100 connections that ask once whether the server lives, and stay."""

    async def one(_: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", attack.port, local_addr=(ADDRESS, 0))
        try:
            writer.write(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n")
            attack.answers[(await reader.readline())[9:12].decode() or "closed"] += 1
            await reader.read()
        finally:
            writer.close()

    await attack.connections(NUM_IDLE, one)


async def flood(attack: Attack) -> None:
    """100 connections that send 16 texts each, one request after the other."""
    body = json.dumps({"inputs": ["a gripping and often funny film"] * NUM_FLOOD_ITEMS}).encode()
    await attack.requests(NUM_FLOODING, CLASSIFY, [(body, False)])


ATTACKS: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {
    one.__name__: one for one in (images, texts, zipped, numbers, silent, idle, flood)
}


def png() -> str:
    """Return a PNG of 25 megapixels and 3 KB, as base64."""
    file = io.BytesIO()
    Image.new("1", (5000, 5000)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def numbers_body() -> bytes:
    """Return V2 JSON with nearly as many numbers as are allowed, filled up with blanks."""
    tensor = f'{{"name": "text", "datatype": "INT32", "shape": [{NUM_VALUES}], "data": ['
    body = f'{{"inputs": [{tensor}{"100," * (NUM_VALUES - 1)}100]}}]}}'
    return body.encode().ljust(UNPACKED_BYTES)


def numbers_message() -> bytes:
    """Return a `ModelInferRequest` of 30 MB: messages that follow one another are merged into one."""
    request, tensor = CLASSES["ModelInferRequest"](), CLASSES["InferInputTensor"]
    request.model_name = TEXTS
    head = tensor(name="text", datatype="UINT8", shape=[NUM_NUMBERS]).SerializeToString()
    values = _field(CLASSES["InferTensorContents"], "uint_contents", b"\x01" * NUM_NUMBERS)
    whole = head + _field(tensor, "contents", values)
    return bytes(request.SerializeToString() + _field(CLASSES["ModelInferRequest"], "inputs", whole))


def _field(message: Any, name: str, content: bytes) -> bytes:
    """Encode a field that has a length before its content."""
    number = message.DESCRIPTOR.fields_by_name[name].number
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    *lower, last = _sevens(value)
    return bytes([*(part | 128 for part in lower), last])


def _sevens(value: int) -> Iterator[int]:
    while value > 127:
        yield value & 127
        value >>= 7
    yield value


def predicting_paths() -> Iterator[str]:
    """Every path that predicts, and other spellings of the first."""
    for route in ROUTES:
        if route.scope == "predict":
            yield route.path.replace(MODEL, f"/v2/models/{TEXTS}")
    yield f"{CLASSIFY}/"
    yield CLASSIFY.replace("l", "%6C")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name", choices=ATTACKS)
    parser.add_argument("--path", default="", help="for silent: the only path")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--grpc-port", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--token", default="")
    options = parser.parse_args()
    if options.path and options.name != "silent":
        parser.error("--path is for silent alone")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    attack = Attack(options.port, options.grpc_port, options.seconds, options.token)
    asyncio.run(ATTACKS[options.name](attack, *([options.path] if options.path else [])))
    print(json.dumps(attack.answers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
