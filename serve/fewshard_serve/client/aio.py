"""The client to await; see the package for how to use it."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import Any, Self

import httpx

from fewshard_serve.client import wire
from fewshard_serve.client.answers import Classification, Prediction, classification
from fewshard_serve.client.inputs import Input
from fewshard_serve.client.retry import Result, Retry, Send, exchange


class AsyncClient:
    """As `Client`, on one event loop."""

    def __init__(
        self,
        url: str = wire.DEFAULT_URL,
        timeout_s: float = wire.DEFAULT_TIMEOUT_S,
        *,
        token: str | None = None,
        retry: Retry | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._retry = retry or Retry()
        self._http = httpx.AsyncClient(transport=transport, headers=wire.default_headers(token))

    async def classify(self, model: str, inputs: Input | Sequence[Input], **options: Any) -> Classification:
        """As `Client.classify`."""
        call = wire.classify_call(model, inputs, **options)
        answer = wire.read_object(self._url, await self._send(call))
        return classification(answer, len(call.body["inputs"]))

    async def classify_all(
        self,
        model: str,
        inputs: Iterable[Input],
        batch_size: int = 64,
        concurrency: int = 4,
        **options: Any,
    ) -> AsyncIterator[Prediction]:
        """Predictions of any number of inputs, in order, with up to `concurrency` requests on their way."""
        waiting: list[asyncio.Task[Classification]] = []
        try:
            for batch in wire.batched(inputs, batch_size):
                waiting.append(asyncio.create_task(self.classify(model, batch, **options)))
                if len(waiting) >= concurrency:
                    for prediction in (await waiting.pop(0)).predictions:
                        yield prediction
            while waiting:
                for prediction in (await waiting.pop(0)).predictions:
                    yield prediction
        finally:
            for task in waiting:
                task.cancel()

    async def config(self, model: str) -> dict[str, Any]:
        """As `Client.config`."""
        return wire.read_object(self._url, await self._send(wire.config_call(model)))

    async def place(self, model: str, placement: dict[str, Any]) -> dict[str, Any]:
        """As `Client.place`."""
        return wire.read_object(self._url, await self._send(wire.place_call(model, placement)))

    async def index(self) -> list[dict[str, Any]]:
        """As `Client.index`."""
        return wire.read_index(self._url, await self._send(wire.INDEX_CALL))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _send(self, call: wire.Call) -> httpx.Response:
        steps = exchange(self._url, self._timeout_s, self._retry)
        result: Result = None
        while True:
            try:
                step = steps.send(result)
            except StopIteration as done:
                response: httpx.Response = done.value
                return response
            if isinstance(step, Send):
                result = await self._try(call, step.timeout_s)
            else:
                await asyncio.sleep(step.seconds)
                result = None

    async def _try(self, call: wire.Call, timeout_s: float) -> Result:
        headers = call.with_deadline(timeout_s)
        try:
            return await self._http.request(
                call.method, self._url + call.path, json=call.body, headers=headers, timeout=timeout_s
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return error
