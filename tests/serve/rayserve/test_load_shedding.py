"""HAProxy refuses what two replicas have no room for; each has told it of room for ten requests."""

import asyncio
import contextlib
import shutil
import subprocess

import httpx
import pytest

from fewshard_serve.rayserve.environment import has_haproxy

pytestmark = pytest.mark.skipif(not has_haproxy(), reason="ray[serve] brings HAProxy on Linux only")

MODEL = "/v2/models/m"
HOLD = {"X-Hold": "1500"}
ROOM = 20
RESERVE = 5
"""A quarter of the room, for callers who hold nothing."""
FAIR = 16
"""One caller's part of the 20 where another holds one: a 17th would be more than 8 times the 2 left free."""
PATHS = {
    "/classify": None,
    "/infer": None,
    "/versions/1/infer": None,
    "/explain": None,
    "/predict": "Overloaded",
    "": "Overloaded",
    "/versions/1": "Overloaded",
    "/classify//": None,
    "/%63lassify": None,
    "/predict/": "Overloaded",
    "/rerank": "Overloaded",
    "/score": "vLLM",
}
"""Every path that predicts, in some spellings, with its clients' `error_type`, or vLLM's shape."""


@pytest.fixture(scope="module")
def front(tmp_path_factory, front_type):
    one = front_type(tmp_path_factory.mktemp("front"), MODEL, room="10/7")
    yield one
    one.close()


class Callers:
    """Clients at three addresses. `hold` starts requests that stay in flight until the end."""

    def __init__(self, port):
        self._port = port
        self._url = f"http://127.0.0.1:{port}{MODEL}"
        self._clients = [
            httpx.AsyncClient(timeout=10, transport=httpx.AsyncHTTPTransport(local_address=f"127.0.0.{at}"))
            for at in (1, 2, 3)
        ]
        self._held = []
        self._open = contextlib.AsyncExitStack()

    async def post(self, path="/classify", caller=0, **headers):
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self._clients[caller].post(self._url + path, content=b"{}", headers=names)

    async def get(self, path):
        return await self._clients[0].get(self._url + path)

    async def hold(self, count, caller=0, path="/classify", **more):
        posts = [self.post(path, caller, **HOLD, **more) for _ in range(count)]
        self._held += [asyncio.create_task(each) for each in posts]
        await asyncio.sleep(0.4)

    async def begin(self, count, path="/classify", num_bytes=300_000, length=b"Content-Length: 1000000"):
        """Send the first bytes of so many bodies from the last address, and no more."""
        for _ in range(count):
            _, writer = await asyncio.open_connection("127.0.0.1", self._port, local_addr=("127.0.0.3", 0))
            self._open.callback(writer.close)
            writer.write(b"POST %b HTTP/1.1\r\nHost: a\r\n%b\r\n\r\n" % (f"{MODEL}{path}".encode(), length))
            writer.write(bytes(num_bytes))
            await writer.drain()
        await asyncio.sleep(0.4)

    async def __aenter__(self):
        await self.get("/stats")  # HAProxy learns of the room
        return self

    async def __aexit__(self, *_):
        await self._open.aclose()
        statuses = [answer.status_code for answer in await asyncio.gather(*self._held)]
        for client in self._clients:
            await client.aclose()
        assert set(statuses) <= {200}


def test_a_refusal_has_the_form_of_its_path_and_is_told_once(front):
    async def run():
        async with Callers(front.port) as callers:
            await callers.hold(ROOM)
            refused = {path: await callers.post(path) for path in PATHS}
            refused["binary"] = await callers.post("/infer", inference_header_content_length="2")
            own_id = await callers.post(x_request_id="mine", x_fewshard_refused="9/9/9")
            told = [(await callers.get("/stats")).headers for _ in range(2)]
        return refused, own_id, told

    refused, own_id, told = asyncio.run(run())
    for path, answer in {**refused, "own": own_id}.items():
        assert answer.status_code == 429, path
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["retry-after"] == "7"
        body = answer.json()
        if PATHS.get(path) == "vLLM":
            assert body["error"]["type"] == "overloaded"
            continue
        assert body.pop("error_type", None) == PATHS.get(path), path
        assert body == {"error": "too much is in flight; retry in 7 s", "code": "overloaded"}
        assert answer.headers["x-request-id"]
    assert own_id.headers["x-request-id"] == "mine"
    # classify, predict, the model itself, infer in JSON and in binary, explain, rerank, score
    assert [headers["x-seen"] for headers in told] == ["4/2/2/2/1/1/1/1", ""]
    assert not any("x-fewshard-room" in headers for headers in told)


@pytest.mark.parametrize("path", PATHS)
def test_every_path_that_predicts_is_counted(front, path):
    async def run():
        async with Callers(front.port) as callers:
            await callers.hold(ROOM, path=path)
            return (await callers.post()).status_code

    assert asyncio.run(run()) == 429


def test_who_holds_nothing_may_exceed_the_room_by_a_quarter(front):
    async def run():
        async with Callers(front.port) as callers:
            await callers.hold(ROOM)
            greedy = await callers.post()
            await callers.hold(1, caller=1)
            second = await callers.post(caller=1)
            urgent = await callers.post(caller=1, x_request_priority="high", x_hold="20")
            new = await callers.post(caller=2)
            other = await callers.post("/nothing")
            return [answer.status_code for answer in (greedy, second, urgent, new, other)]

    assert asyncio.run(run()) == [429, 429, 200, 200, 200]


def test_a_caller_beside_another_gets_its_fair_share(front):
    async def run():
        async with Callers(front.port) as callers:
            await callers.hold(1, caller=1)
            await callers.hold(FAIR)
            greedy = await callers.post()
            other = await callers.post(caller=1)
            return greedy.status_code, other.status_code

    assert asyncio.run(run()) == (429, 200)


@pytest.mark.parametrize(
    "begun",
    [
        {"path": "/predict"},
        {"path": "/classify"},
        {"length": b"Transfer-Encoding: chunked", "num_bytes": 0},
        {"num_bytes": 10},
    ],
    ids=["predict", "classify", "chunked", "first bytes"],
)
def test_bodies_that_do_not_come_take_no_room(front, begun):
    async def run():
        async with Callers(front.port) as callers:
            await callers.begin(3 * ROOM, **begun)
            return [(await callers.post(caller=at % 2)).status_code for at in range(10)]

    assert asyncio.run(run()) == [200] * 10


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl")
def test_bodies_over_http2_that_do_not_come_take_no_room(front):
    """They need not say how long they are."""
    url = f"http://127.0.0.1:{front.port}{MODEL}/classify"
    command = [
        "curl",
        "-s",
        "--http2-prior-knowledge",
        "--interface",
        "127.0.0.3",
        "-T",
        "-",
        "-X",
        "POST",
        url,
    ]
    uploads = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        for _ in range(ROOM + 2 * RESERVE)
    ]

    async def run():
        async with Callers(front.port) as callers:
            for upload in uploads:
                upload.stdin.write(bytes(300_000))
            await asyncio.sleep(1.5)  # longer than HAProxy waits for a body that fits its buffer
            assert all(upload.poll() is None for upload in uploads)
            return [(await callers.post(caller=at % 2)).status_code for at in range(10)]

    try:
        assert asyncio.run(run()) == [200] * 10
    finally:
        for upload in uploads:
            upload.kill()
            upload.communicate()


def test_a_large_body_is_refused_where_there_is_no_room(front):
    async def run():
        async with Callers(front.port) as callers:
            await callers.hold(ROOM)
            return await callers._clients[0].post(callers._url + "/classify", content=bytes(600_000))

    assert asyncio.run(run()).status_code == 429


def test_a_made_up_token_makes_no_caller(front):
    async def run():
        async with Callers(front.port) as callers:
            await callers.hold(ROOM)
            return [(await callers.post(authorization=f"Bearer {at}")).status_code for at in range(3)]

    assert asyncio.run(run()) == [429] * 3


def test_a_token_that_a_replica_knows_makes_one_from_wherever_it_comes(front):
    async def run():
        token = {"authorization": "Bearer good"}
        async with Callers(front.port) as callers:
            await callers.post(**token)  # HAProxy learns that it is known
            await callers.hold(ROOM)
            new = await callers.post(**token)
            await callers.hold(1, caller=1, **token)
            return new.status_code, (await callers.post(caller=2, **token)).status_code

    assert asyncio.run(run()) == (200, 429)


def test_a_client_cannot_say_what_was_refused(front):
    async def run():
        async with Callers(front.port) as callers:
            return (await callers.post(x_fewshard_refused="9/9/9")).headers["x-seen"]

    assert asyncio.run(run()) == ""
