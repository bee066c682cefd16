"""The Python client: what it sends, what it makes of answers, and when it tries again."""

import asyncio
import base64
import json
import subprocess
import sys
from types import ModuleType

import httpx
import pytest

import fewshard_serve.client as package
from fewshard_serve.client import AsyncClient, Client, ClientError, Image, LabelScore, Ranked, Retry, TextPair
from fewshard_serve.client.messages import as_json, item_json
from fewshard_serve.client.retry import Send, Sleep, exchange

URL = "http://server"
FAST = Retry(first_wait_s=0.001, max_wait_s=0.002)


def answer_to(body, **more):
    """What a server would say: each text's label is the text."""
    texts = [each if isinstance(each, str) else each["text"] for each in body["inputs"]]
    predictions = [[{"label": text, "score": 0.9}, {"label": "other", "score": 0.1}] for text in texts]
    return {
        "model": "m",
        "predictions": predictions,
        "usage": {"items": len(texts), "tokens": 7},
        "timings_ms": {"queue": 0.5},
        **more,
    }


class Server:
    """Says what it is told to, one after another, then answers; `requests` are those that came."""

    def __init__(self, *first, **more):
        self.first, self.more, self.requests = list(first), more, []

    def __call__(self, request):
        self.requests.append(request)
        if self.first:
            told = self.first.pop(0)
            if isinstance(told, Exception):
                raise told
            return told
        return httpx.Response(200, json=answer_to(json.loads(request.content), **self.more))

    @property
    def bodies(self):
        return [json.loads(request.content) for request in self.requests]


class Blocking:
    """Drives either client by the same calls."""

    def __init__(self, server, **options):
        options = {"retry": FAST, "transport": httpx.MockTransport(server), **options}
        self.client = Client(URL, **options)

    def classify(self, *args, **options):
        with self.client as client:
            return client.classify(*args, **options)

    def classify_all(self, *args, **options):
        with self.client as client:
            return list(client.classify_all(*args, **options))

    def index(self):
        with self.client as client:
            return client.index()


class Awaiting:
    def __init__(self, server, **options):
        self.options = {"retry": FAST, "transport": httpx.MockTransport(server), **options}

    def classify(self, *args, **options):
        async def once():
            async with AsyncClient(URL, **self.options) as client:
                return await client.classify(*args, **options)

        return asyncio.run(once())

    def classify_all(self, *args, **options):
        async def once():
            async with AsyncClient(URL, **self.options) as client:
                return [each async for each in client.classify_all(*args, **options)]

        return asyncio.run(once())

    def index(self):
        async def once():
            async with AsyncClient(URL, **self.options) as client:
                return await client.index()

        return asyncio.run(once())


PAIRS = [TextPair("a", "bb"), TextPair("c", "d")]


def asked_of(server, call):
    """The results of `call` with both clients, and the path and the body that each sent."""
    options = {"retry": FAST, "transport": httpx.MockTransport(server)}

    async def awaited():
        async with AsyncClient(URL, **options) as client:
            return await call(client)

    with Client(URL, **options) as client:
        results = [call(client), asyncio.run(awaited())]
    return results, [(request.url.path, json.loads(request.content)) for request in server.requests]


def test_documents_are_ranked():
    told = {"results": [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0.1}]}
    server = Server(*(httpx.Response(200, json=told) for _ in range(2)))
    results, asked = asked_of(server, lambda client: client.rerank("a b", "q", ["x", "y"], top_n=2))
    assert results == [(Ranked(1, 0.9), Ranked(0, 0.1))] * 2
    body = {"query": "q", "documents": ["x", "y"], "top_n": 2, "return_documents": False}
    assert asked == [("/v2/models/a b/rerank", {**body, "raw_scores": False, "truncate": True})] * 2


def test_pairs_are_scored():
    told = {"data": [{"score": 1.5}, {"score": -2}]}
    server = Server(*(httpx.Response(200, json=told) for _ in range(2)))
    results, asked = asked_of(server, lambda client: client.score("m", PAIRS, raw_scores=True))
    assert results == [[1.5, -2.0]] * 2
    body = {"text_1": ["a", "c"], "text_2": ["bb", "d"], "raw_scores": True, "truncate": True}
    assert asked == [("/v2/models/m/score", body)] * 2


@pytest.mark.parametrize("told", [{}, {"results": [{}], "data": [{}]}, {"results": 1, "data": 1}])
def test_an_answer_that_ranks_nothing_is_refused(told):
    for call in (lambda client: client.rerank("m", "q", ["x"]), lambda client: client.score("m", PAIRS)):
        with pytest.raises(ClientError, match="not one of a Fewshard server"):
            asked_of(Server(httpx.Response(200, json=told)), call)


def test_labels_above_their_thresholds(kind):
    first, second = kind(Server(assigned=[["a"], []])).classify("m", ["a", "b"]).predictions
    assert (first.assigned, second.assigned) == (("a",), ())
    assert kind(Server()).classify("m", "a").predictions[0].assigned is None


@pytest.fixture(params=[Blocking, Awaiting])
def kind(request):
    return request.param


def test_an_answer_is_typed(kind):
    answer = kind(Server()).classify("m", ["a", "b"])
    assert (answer.model, answer.num_tokens, answer.timings_ms) == ("m", 7, {"queue": 0.5})
    first, second = answer.predictions
    assert (first.label, first.score, first.stage) == ("a", 0.9, None)
    assert second.labels == (LabelScore("b", 0.9), LabelScore("other", 0.1))
    assert answer.raw["usage"] == {"items": 2, "tokens": 7}


def test_a_cascade_says_which_stage_spoke(kind):
    answer = kind(Server(stages=["cheap", "dear"])).classify("m", ["a", "b"])
    assert [each.stage for each in answer.predictions] == ["cheap", "dear"]


def test_one_input_is_a_list_of_one(kind):
    server = Server()
    kind(server).classify("m", "a")
    assert server.bodies == [{"inputs": ["a"]}]


def test_inputs_of_every_kind(tmp_path):
    server = Server()
    path = tmp_path / "cat.png"
    path.write_bytes(b"PNG")
    given = ["text", TextPair("a", "b"), Image(b"GIF", "image/gif"), path]
    Blocking(server).classify("m", given)
    text, pair, image, file = server.bodies[0]["inputs"]
    assert (text, pair) == ("text", {"text": "a", "text_pair": "b"})
    assert image == f"data:image/gif;base64,{base64.b64encode(b'GIF').decode()}"
    assert file == f"data:image/png;base64,{base64.b64encode(b'PNG').decode()}"


@pytest.mark.parametrize("given", [b"PNG", 3, [1.0]], ids=lambda given: type(given).__name__)
def test_what_is_no_input_is_named_with_what_is(given):
    with pytest.raises(ClientError, match=rf"a {type(given).__name__} cannot be classified: give a text"):
        Blocking(Server()).classify("m", ["text", given])


def test_the_items_of_another_task_can_be_taught():
    class Row(tuple):
        """Numbers of a table."""

    item_json.register(Row, list)
    assert as_json(Row((1.0, 2.0))) == [[1.0, 2.0]]
    assert as_json([Row((1.0,)), "text"]) == [[1.0], "text"]


def test_an_image_that_is_missing_is_named(tmp_path):
    with pytest.raises(ClientError, match=r"none\.png cannot be read"):
        Blocking(Server()).classify("m", tmp_path / "none.png")


def test_options_are_sent_where_they_are_asked_for(kind):
    server = Server()
    kind(server, token="t0ken", timeout_s=5).classify(
        "m", "a", top_k=2, raw_scores=True, truncate=False, priority="high", request_id="r1"
    )
    assert server.bodies == [{"inputs": ["a"], "top_k": 2, "raw_scores": True, "truncate": False}]
    headers = server.requests[0].headers
    assert headers["authorization"] == "Bearer t0ken"
    assert (headers["x-request-priority"], headers["x-request-id"]) == ("high", "r1")
    assert 4000 < int(headers["x-request-timeout-ms"]) <= 5000


def test_the_token_may_come_from_the_environment(kind, monkeypatch):
    monkeypatch.setenv("FEWSHARD_TOKEN", "from-env")
    server = Server()
    kind(server).classify("m", "a")
    assert server.requests[0].headers["authorization"] == "Bearer from-env"


def test_many_inputs_go_in_batches_and_stay_in_order(kind):
    server = Server()
    texts = [str(n) for n in range(25)]
    predictions = kind(server).classify_all("m", iter(texts), batch_size=10, top_k=1)
    assert [each.label for each in predictions] == texts
    assert sorted(len(body["inputs"]) for body in server.bodies) == [5, 10, 10]


def test_no_inputs_send_nothing(kind):
    server = Server()
    assert kind(server).classify_all("m", []) == []
    assert server.requests == []


@pytest.mark.parametrize("size", [0, -1])
def test_a_batch_size_that_sends_nothing_is_refused(kind, size):
    with pytest.raises(ValueError, match="batch_size"):
        kind(Server()).classify_all("m", ["a"], batch_size=size)


def test_async_batches_overlap():
    """Four at a time, and a failing one takes the others with it."""
    most, inside = 0, 0

    async def handle(request):
        nonlocal most, inside
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.01)
        inside -= 1
        return httpx.Response(200, json=answer_to(json.loads(request.content)))

    predictions = Awaiting(handle).classify_all("m", map(str, range(40)), batch_size=2, concurrency=4)
    assert [each.label for each in predictions] == [str(n) for n in range(40)]
    assert 1 < most <= 4


REFUSAL = {"error": "busy", "code": "overloaded"}


@pytest.mark.parametrize(
    "trouble",
    [
        lambda: httpx.Response(429, json=REFUSAL, headers={"Retry-After": "0"}),
        lambda: httpx.Response(503, json={"error": "draining", "code": "not_ready"}),
        lambda: httpx.Response(502, text="bad gateway"),
        lambda: httpx.Response(500, text="a replica died under the proxy"),
        lambda: httpx.ConnectError("refused"),
        lambda: httpx.ReadError("reset"),
        lambda: httpx.RemoteProtocolError("closed"),
    ],
)
def test_what_may_pass_is_tried_again(kind, trouble):
    server = Server(trouble(), trouble())
    assert kind(server).classify("m", "a").predictions[0].label == "a"
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 413, 422, 500])
def test_what_will_not_pass_is_not(kind, status):
    server = Server(httpx.Response(status, json={"error": "because", "code": "word"}))
    with pytest.raises(ClientError, match=f"http://server answered {status}: because") as refusal:
        kind(server).classify("m", "a")
    assert (refusal.value.status, refusal.value.server_code) == (status, "word")
    assert len(server.requests) == 1


def test_the_last_refusal_is_told(kind):
    server = Server(*[httpx.Response(429, json=REFUSAL)] * 9)
    with pytest.raises(ClientError, match="429: busy"):
        kind(server, retry=Retry(max_retries=2, first_wait_s=0.001)).classify("m", "a")
    assert len(server.requests) == 3


def test_commands_do_not_wait_for_a_server_that_is_not_there(kind):
    server = Server(httpx.ConnectError("refused"))
    with pytest.raises(ClientError, match="no server answers"):
        kind(server, retry=Retry(on_connect=False)).classify("m", "a")
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"model": "m", "predictions": [], "usage": {"tokens": 1}},
        {"model": "m", "predictions": [[{"label": "x"}]], "usage": {"tokens": 1}},
        {"model": "m", "predictions": [[{"label": "x", "score": "much"}]], "usage": {"tokens": 1}},
        {"model": "m", "predictions": 3, "usage": {"tokens": 1}},
        {"model": "m", "predictions": [[]], "usage": []},
        {"model": "m", "predictions": [[]], "stages": ["a", "b"], "usage": {"tokens": 1}},
    ],
)
def test_another_servers_answer_is_no_answer(kind, body):
    with pytest.raises(ClientError, match="not one of a Fewshard server"):
        kind(Server(httpx.Response(200, json=body))).classify("m", "a")


def test_an_index_that_is_no_list(kind):
    with pytest.raises(ClientError, match="no list"):
        kind(Server(httpx.Response(200, json={}))).index()


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def driven(results, timeout_s=60.0, retry=Retry(), took_s=0.0):  # noqa: B008  it is frozen
    """The steps of an exchange whose tries end as `results` do, and how it ends."""
    clock, steps, left = Clock(), [], list(results)
    going = exchange(URL, timeout_s, retry, clock, jitter=lambda: 1.0)
    result = None
    while True:
        try:
            step = going.send(result)
        except StopIteration as done:
            return steps, done.value
        except ClientError as error:
            return steps, error
        steps.append(step)
        clock.now += step.seconds if isinstance(step, Sleep) else took_s
        result = left.pop(0) if isinstance(step, Send) else None


def refused(after=None):
    return httpx.Response(429, headers={} if after is None else {"Retry-After": after})


def test_the_servers_word_is_waited_for():
    steps, end = driven([refused("3"), httpx.Response(200)])
    assert steps == [Send(60.0), Sleep(pytest.approx(3.3)), Send(pytest.approx(56.7))]
    assert end.status_code == 200


def test_without_a_word_waits_double_up_to_a_bound():
    steps, end = driven([refused()] * 5, retry=Retry(max_retries=4, first_wait_s=1.0, max_wait_s=3.0))
    assert [step.seconds for step in steps if isinstance(step, Sleep)] == [1, 2, 3, 3]
    assert end.status_code == 429


@pytest.mark.parametrize("word", ["", "soon", "-1", "1e9", "9" * 40, "Wed, 21 Oct 2026 07:28:00 GMT", "²"])
def test_an_odd_retry_after_is_as_none(word):
    response = httpx.Response(429, headers=[(b"retry-after", word.encode())])
    steps, _ = driven([response, httpx.Response(200)])
    assert steps[1] == Sleep(0.1)


def test_no_wait_passes_the_deadline():
    steps, end = driven([refused("30")], timeout_s=10)
    assert steps == [Send(10)]
    assert end.status_code == 429


def test_each_try_has_what_is_left_of_the_deadline():
    results = [httpx.ReadError("reset")] * 4 + [httpx.Response(200)]
    steps, _ = driven(results, timeout_s=10, retry=Retry(first_wait_s=1.0), took_s=1.0)
    assert [step.timeout_s for step in steps if isinstance(step, Send)] == [10, 8, 5]


def test_a_try_that_took_all_the_time_is_the_last():
    steps, end = driven([httpx.ReadTimeout("late")])
    assert len(steps) == 1
    assert "did not answer within 60 s" in str(end)


def test_the_public_names_are_all_there_is():
    public = {
        name for name, value in vars(package).items() if name[0] != "_" and not isinstance(value, ModuleType)
    }
    assert set(package.__all__) == public


def test_importing_it_is_cheap():
    """It must be of use where neither Ray nor torch is wanted."""
    code = "import sys, fewshard_serve.client; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "ray", "transformers", "numpy", "pydantic"} & set(loaded)
