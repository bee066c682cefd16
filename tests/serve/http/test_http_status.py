"""The one table of statuses, and what an error looks like on the wire."""

import json

import pytest

from fewshard_serve import errors
from fewshard_serve.errors import ServeError
from fewshard_serve.http.responses import HTTP_STATUS, error_response, json_response, status_of, unforeseen

NOT_OF_REQUESTS = {ServeError, errors.ConfigError, errors.StartError}
HAS_ITS_PARENTS = {errors.ModelRestarted, errors.ModelUnloaded}


def test_every_error_of_a_request_has_a_status(error_kinds: list[type[ServeError]]) -> None:
    assert set(HTTP_STATUS) == set(error_kinds) - NOT_OF_REQUESTS - HAS_ITS_PARENTS
    assert status_of(errors.ModelRestarted("")) == 500


def test_a_subclass_has_its_parents_status_and_strangers_are_ours() -> None:
    class Deeper(errors.TooLarge):
        pass

    assert status_of(Deeper("")) == 413
    assert status_of(errors.ConfigError("")) == 500
    assert status_of(ServeError("")) == 500


@pytest.mark.parametrize(
    ("wait_s", "header"), [(0.0, "1"), (0.2, "1"), (1.0, "1"), (1.01, "2"), (30.0, "30")]
)
def test_retry_after_is_whole_seconds_and_at_least_one(wait_s: float, header: str) -> None:
    response = error_response(errors.Overloaded("busy", wait_s))
    assert response.status == 429
    assert dict(response.headers) == {b"retry-after": header.encode()}


def test_errors_are_json_with_headers_of_their_kind() -> None:
    refused = error_response(errors.MethodNotAllowed("no", "GET, HEAD"), more=1)
    assert (refused.status, dict(refused.headers)) == (405, {b"allow": b"GET, HEAD"})
    assert json.loads(refused.body) == {"error": "no", "code": "method_not_allowed", "more": 1}
    assert dict(error_response(errors.Unauthorized("no")).headers) == {b"www-authenticate": b"Bearer"}


def test_an_internal_error_says_nothing_of_itself() -> None:
    response = error_response(unforeseen())
    assert response.status == 500
    assert json.loads(response.body)["code"] == "internal"


def test_numbers_that_json_lacks_become_null() -> None:
    assert json_response({"x": float("nan"), "y": float("inf")}).body == b'{"x":null,"y":null}'
