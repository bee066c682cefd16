"""What both clients send and how they read what comes back; no network here."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from fewshard_serve.client.errors import ClientError
from fewshard_serve.client.inputs import Input, as_json

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_TIMEOUT_S = 60.0
TOKEN_VARIABLE = "FEWSHARD_TOKEN"

ItemT = TypeVar("ItemT")


@dataclass(frozen=True, slots=True)
class Call:
    """One request of the API."""

    method: str
    path: str
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)

    def with_deadline(self, timeout_s: float) -> dict[str, str]:
        """The headers of a try that has so long: work that comes too late is not begun."""
        return {**self.headers, "X-Request-Timeout-Ms": str(max(1, round(timeout_s * 1000)))}


def classify_call(
    model: str,
    inputs: Input | Sequence[Input],
    *,
    top_k: int | None = None,
    raw_scores: bool = False,
    truncate: bool = True,
    priority: str | None = None,
    request_id: str | None = None,
) -> Call:
    """`POST /v2/models/<model>/classify`."""
    options = {"top_k": top_k, "raw_scores": raw_scores, "truncate": truncate}
    usual = {"top_k": None, "raw_scores": False, "truncate": True}
    asked = {key: value for key, value in options.items() if value != usual[key]}
    told = {"X-Request-Priority": priority, "X-Request-Id": request_id}
    headers = {name: value for name, value in told.items() if value is not None}
    return Call("POST", f"{_model_path(model)}/classify", {"inputs": as_json(inputs), **asked}, headers)


def config_call(model: str) -> Call:
    return Call("GET", f"{_model_path(model)}/config")


def place_call(model: str, placement: dict[str, Any]) -> Call:
    return Call("POST", f"{_model_path(model)}/placement", placement)


INDEX_CALL = Call("POST", "/v2/repository/index", {})


def default_headers(token: str | None) -> dict[str, str]:
    """With the token, or the one in the environment; never shown in an error."""
    token = token or os.environ.get(TOKEN_VARIABLE)
    return {"Authorization": f"Bearer {token}"} if token else {}


def read_object(url: str, response: httpx.Response) -> dict[str, Any]:
    """The JSON object of a good answer. Raises `ClientError`."""
    answer = _read(url, response)
    if not isinstance(answer, dict):
        raise ClientError(f"{url} answered with something that is not a JSON object")
    return answer


def read_index(url: str, response: httpx.Response) -> list[dict[str, Any]]:
    """The repository index. Raises `ClientError`."""
    answer = _read(url, response)
    if not isinstance(answer, list):
        raise ClientError(f"{url} is not a Fewshard server: its repository index is no list")
    return answer


def batched(inputs: Iterable[ItemT], size: int) -> Iterator[list[ItemT]]:
    """Lists of so many, the last one shorter."""
    if size < 1:
        raise ValueError(f"a batch of {size} inputs cannot be sent; batch_size must be at least 1")
    left = iter(inputs)
    while batch := list(islice(left, size)):
        yield batch


def _model_path(model: str) -> str:
    return f"/v2/models/{quote(model, safe='')}"


def _read(url: str, response: httpx.Response) -> Any:
    status = response.status_code
    try:
        answer = response.json()
    except ValueError:
        raise ClientError(
            f"{url} answered {status} without JSON; is this a Fewshard server?", status
        ) from None
    if response.is_success:
        return answer
    told = answer if isinstance(answer, dict) else {}
    message = f"{url} answered {status}: {told.get('error') or answer}"
    raise ClientError(message, status, str(told.get("code", "")))
