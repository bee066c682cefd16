"""HAProxy refuses what two replicas have no room for; each has told it of room for ten requests."""

import asyncio

import httpx
import pytest

from fewshard_serve.rayserve.environment import has_haproxy

pytestmark = pytest.mark.skipif(not has_haproxy(), reason="ray[serve] brings HAProxy on Linux only")

MODEL = "/v2/models/m"
HOLD = {"X-Hold": "1500"}
FAIR = 18
"""One caller's part of the 20: a 19th would hold 18 already, and 18 < 8 * (20 - 18) is not true."""


@pytest.fixture(scope="module")
def front(tmp_path_factory, front_type):
    one = front_type(tmp_path_factory.mktemp("front"), MODEL, room="10/7")
    yield one
    one.close()


class Callers:
    """Clients at two addresses. `hold` starts requests that stay in flight until the end."""

    def __init__(self, port):
        self._url = f"http://127.0.0.1:{port}{MODEL}"
        self._clients = [
            httpx.AsyncClient(timeout=10, transport=httpx.AsyncHTTPTransport(local_address=f"127.0.0.{at}"))
            for at in (1, 2)
        ]
        self._held = []

    async def post(self, path="/classify", caller=0, **headers):
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self._clients[caller].post(self._url + path, content=b"{}", headers=names)

    async def get(self, path):
        return await self._clients[0].get(self._url + path)

    async def hold(self, count, caller=0):
        self._held += [asyncio.create_task(self.post("/classify", caller, **HOLD)) for _ in range(count)]
        await asyncio.sleep(0.4)

    async def __aenter__(self):
        await self.get("/stats")  # HAProxy learns of the room
        return self

    async def __aexit__(self, *_):
        statuses = [answer.status_code for answer in await asyncio.gather(*self._held)]
        for client in self._clients:
            await client.aclose()
        assert set(statuses) <= {200}


def test_a_refusal_has_the_form_of_ours_and_is_told_once(front):
    async def run():
        async with Callers(front.port) as callers:
            await callers.hold(FAIR)
            refused = [await callers.post(path) for path in ("/classify", "/infer", "/versions/1/infer")]
            refused.append(await callers.post("/infer", inference_header_content_length="2"))
            own_id = await callers.post(x_request_id="mine", x_fewshard_refused="9/9/9")
            told = [(await callers.get("/stats")).headers for _ in range(2)]
        return [*refused, own_id], told

    refused, told = asyncio.run(run())
    for answer in refused:
        assert answer.status_code == 429
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["retry-after"] == "7"
        assert answer.json() == {"error": "too much is in flight; retry in 7 s", "code": "overloaded"}
        assert answer.headers["x-request-id"]
    assert refused[-1].headers["x-request-id"] == "mine"
    assert [headers["x-seen"] for headers in told] == ["2/2/1", "0/0/0"]
    assert not any("x-fewshard-room" in headers for headers in told)


def test_there_is_room_for_a_caller_that_comes_new_until_there_is_none(front):
    async def run():
        async with Callers(front.port) as callers:
            await callers.hold(FAIR)
            greedy = await callers.post()
            await callers.hold(2, caller=1)
            full = await callers.post(caller=1)
            urgent = await callers.post(caller=1, x_request_priority="high", x_hold="20")
            other = await callers.post("/explain")
            return [answer.status_code for answer in (greedy, full, urgent, other)]

    assert asyncio.run(run()) == [429, 429, 200, 200]


def test_a_client_cannot_say_what_was_refused(front):
    async def run():
        async with Callers(front.port) as callers:
            return (await callers.post(x_fewshard_refused="9/9/9")).headers["x-seen"]

    assert asyncio.run(run()) == "0/0/0"
