"""The client that blocks; see the package for how to use it."""

import time
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import httpx

from fewshard_serve.client import wire
from fewshard_serve.client.answers import Classification, Prediction, classification
from fewshard_serve.client.inputs import Input
from fewshard_serve.client.retry import Result, Retry, Send, exchange


class Client:
    """A connection pool to one server; may be used from many threads.

    `timeout_s` is for a whole call, all its tries included; the server hears of it and does not begin what
    would come too late. `token` is the value of FEWSHARD_TOKEN where it is None. Every method raises
    `ClientError` for what is not a good answer.
    """

    def __init__(
        self,
        url: str = wire.DEFAULT_URL,
        timeout_s: float = wire.DEFAULT_TIMEOUT_S,
        *,
        token: str | None = None,
        retry: Retry | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._retry = retry or Retry()
        self._http = httpx.Client(transport=transport, headers=wire.default_headers(token))

    def classify(self, model: str, inputs: Input | Sequence[Input], **options: Any) -> Classification:
        """One request. Options: `top_k`, `raw_scores`, `truncate`, `priority`, `request_id`."""
        call = wire.classify_call(model, inputs, **options)
        answer = wire.read_object(self._url, self._send(call))
        return classification(answer, len(call.body["inputs"]))

    def classify_all(
        self, model: str, inputs: Iterable[Input], batch_size: int = 64, **options: Any
    ) -> Iterator[Prediction]:
        """Predictions of any number of inputs, in order, a request for every `batch_size` of them."""
        for batch in wire.batched(inputs, batch_size):
            yield from self.classify(model, batch, **options).predictions

    def config(self, model: str) -> dict[str, Any]:
        """What the model is and how it is served, with its card."""
        return wire.read_object(self._url, self._send(wire.config_call(model)))

    def place(self, model: str, placement: dict[str, Any]) -> dict[str, Any]:
        """What a placement of a sharded model's experts costs; with `apply` in it, have it."""
        return wire.read_object(self._url, self._send(wire.place_call(model, placement)))

    def index(self) -> list[dict[str, Any]]:
        """One entry a model: `name`, `state` and, where it is not ready, `reason`."""
        return wire.read_index(self._url, self._send(wire.INDEX_CALL))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, call: wire.Call) -> httpx.Response:
        steps = exchange(self._url, self._timeout_s, self._retry)
        result: Result = None
        while True:
            try:
                step = steps.send(result)
            except StopIteration as done:
                response: httpx.Response = done.value
                return response
            if isinstance(step, Send):
                result = self._try(call, step.timeout_s)
            else:
                time.sleep(step.seconds)
                result = None

    def _try(self, call: wire.Call, timeout_s: float) -> Result:
        headers = call.with_deadline(timeout_s)
        try:
            return self._http.request(
                call.method, self._url + call.path, json=call.body, headers=headers, timeout=timeout_s
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return error
