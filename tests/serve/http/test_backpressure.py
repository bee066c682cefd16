"""What a replica tells HAProxy of its room, and HAProxy of its refusals. The rules: test_load_shedding."""

from dataclasses import dataclass

import pytest

from fewshard_serve.auth import hash_of
from fewshard_serve.http.backpressure import refused_before
from fewshard_serve.http.host import HostApp
from fewshard_serve.http.middleware import AccessMiddleware, AccessSettings
from local_service import LocalService


@dataclass
class FakeRoom:
    """`num_told`: how often it was told of refusals."""

    limit_items: int = 40
    num_told: int = 0

    def retry_after_s(self):
        return 1.2

    def note_refusals(self):
        self.num_told += 1


@pytest.fixture
def behind_haproxy(text_model, counted_requests):
    text_model.room = FakeRoom()
    return HostApp(
        LocalService({"sst2": text_model}),
        doors=AccessMiddleware(AccessSettings(is_behind_haproxy=True)),
        on_request=lambda *told: counted_requests.append(told[:3]),
    )


@pytest.mark.parametrize(
    ("body", "status"), [({"inputs": "a"}, 200), ({"inputs": "overloaded"}, 429), ({"inputs": 5}, 400)]
)
def test_haproxy_is_told_with_every_answer_how_much_room_there_is(behind_haproxy, call, body, status):
    answer = call(behind_haproxy, "POST", "/v2/models/sst2/classify", json=body)
    assert answer.status_code == status
    assert answer.headers["x-fewshard-room"] == "40/2/0"


def test_haproxy_is_told_whose_token_is_known(text_model, call, tmp_path):
    text_model.room = FakeRoom()
    path = tmp_path / "tokens.yaml"
    path.write_text(f"tokens:\n  - {{name: me, sha256: {hash_of('mine').hex()}, scopes: []}}\n")
    settings = AccessSettings(is_behind_haproxy=True, tokens_file=str(path))
    host = HostApp(LocalService({"sst2": text_model}), doors=AccessMiddleware(settings))
    for token, told in (("mine", "40/2/1"), ("made up", "40/2/0")):
        answer = call(host, "GET", "/v2/models/sst2", headers={"Authorization": f"Bearer {token}"})
        assert answer.headers["x-fewshard-room"] == told


def test_what_haproxy_refused_is_counted(behind_haproxy, text_model, counted_requests, call):
    headers = {"X-Fewshard-Refused": "2/0/0/0/1/0"}
    assert call(behind_haproxy, "GET", "/v2/models/sst2/nothing", headers=headers).status_code == 404
    assert counted_requests == [
        ("sst2", "classify", "overloaded"),
        ("sst2", "classify", "overloaded"),
        ("sst2", "v2_binary", "overloaded"),
    ]
    assert text_model.stats.requests["fail"].count == 3
    assert text_model.room.num_told == 1
    call(behind_haproxy, "GET", "/v2/models/sst2", headers={"X-Fewshard-Refused": "0/0/0"})
    assert (len(counted_requests), text_model.room.num_told) == (3, 1)


def test_nobody_else_may_say_what_was_refused(host, text_model, counted_requests, call):
    text_model.room = FakeRoom()
    answer = call(host, "GET", "/v2/models/sst2", headers={"X-Fewshard-Refused": "2/0/1"})
    assert "x-fewshard-room" not in answer.headers
    assert (counted_requests, text_model.room.num_told) == ([], 0)


@pytest.mark.parametrize("path", ["/v2/models/sst2", "/v2/models/stats", "/v2/models/nobody", "/v2/models"])
def test_a_model_without_a_limit_tells_none(behind_haproxy, text_model, counted_requests, call, path):
    text_model.room = None
    answer = call(behind_haproxy, "GET", path, headers={"X-Fewshard-Refused": "2/0/1"})
    assert "x-fewshard-room" not in answer.headers
    assert counted_requests == []


@pytest.mark.parametrize(
    ("told", "counts"), [(None, []), (b"0/0/0", []), (b"0/1/0", ["b"]), (b"/-/2", ["c"] * 2), (b"1", ["a"])]
)
def test_the_counts_of_refusals_are_read(told, counts):
    assert list(refused_before(told, ["a", "b", "c"])) == counts
