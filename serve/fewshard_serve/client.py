"""A small HTTP client of a running server, for the commands `predict` and `models`."""

from typing import Any
from urllib.parse import quote

import httpx

from fewshard_serve.errors import FewshardError

DEFAULT_URL = "http://127.0.0.1:8000"


class ClientError(FewshardError):
    """The server did not answer, or refused; the message is the server's own where it gave one."""

    code = "client"


class Client:
    """Raises `ClientError` for everything that is not a good answer."""

    def __init__(
        self, url: str = DEFAULT_URL, timeout_s: float = 60.0, transport: httpx.BaseTransport | None = None
    ) -> None:
        self._url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._transport = transport

    def classify(self, model: str, inputs: list[str], top_k: int | None = None) -> dict[str, Any]:
        """One request with all inputs: texts, or images as data URLs."""
        body = {"inputs": inputs, "top_k": top_k}
        return self._mapping("POST", f"/v2/models/{quote(model, safe='')}/classify", body)

    def config(self, model: str) -> dict[str, Any]:
        """What the model is and how it is served, with its card."""
        return self._mapping("GET", f"/v2/models/{quote(model, safe='')}/config")

    def place(self, model: str, placement: dict[str, Any]) -> dict[str, Any]:
        """What a placement of a sharded model's experts costs; with `apply` in it, have it."""
        return self._mapping("POST", f"/v2/models/{quote(model, safe='')}/placement", placement)

    def index(self) -> list[dict[str, Any]]:
        """One entry a model: `name`, `state` and, where it is not ready, `reason`."""
        answer = self._call("POST", "/v2/repository/index", {})
        if not isinstance(answer, list):
            raise ClientError(f"{self._url} is not a Fewshard server: its repository index is no list")
        return answer

    def _mapping(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        answer = self._call(method, path, body)
        if not isinstance(answer, dict):
            raise ClientError(f"{self._url}{path} answered with something that is not a JSON object")
        return answer

    def _call(self, method: str, path: str, body: object) -> Any:
        response = self._send(method, path, body)
        try:
            answer = response.json()
        except ValueError:
            raise ClientError(
                f"{self._url}{path} answered {response.status_code} without JSON; is this a Fewshard server?"
            ) from None
        if response.is_success:
            return answer
        reason = answer.get("error") if isinstance(answer, dict) else None
        raise ClientError(f"{self._url} answered {response.status_code}: {reason or answer}")

    def _send(self, method: str, path: str, body: object) -> httpx.Response:
        try:
            with httpx.Client(transport=self._transport, timeout=self._timeout_s) as http:
                return http.request(method, self._url + path, json=body)
        except httpx.TimeoutException:
            raise ClientError(f"{self._url} did not answer within {self._timeout_s:g} s") from None
        except (httpx.TransportError, httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise ClientError(
                f"no server answers at {self._url} ({error}); start one with `fewshard serve`, or pass --url"
            ) from None
