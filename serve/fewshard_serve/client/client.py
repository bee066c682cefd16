"""The blocking client and the asynchronous client; the package's docstring shows how to use them."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import httpx

from fewshard_serve.client import messages
from fewshard_serve.client.messages import Classification, Input, Prediction, Ranked, TextPair, classification
from fewshard_serve.client.retry import Result, Retry, Send, exchange


class Client:
    """A connection pool to one server. Many threads may use it.

    timeout_s: seconds for a whole call with all its retries. It is sent to the server as the deadline.
    token: the bearer token; None reads it from the environment variable FEWSHARD_TOKEN.
    retry: when a call is retried.

    Every method raises `ClientError` if the server does not answer, or refuses.
    """

    def __init__(
        self,
        url: str = messages.DEFAULT_URL,
        timeout_s: float = messages.DEFAULT_TIMEOUT_S,
        *,
        token: str | None = None,
        retry: Retry | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._retry = retry or Retry()
        self._http = httpx.Client(transport=transport, headers=messages.default_headers(token))

    def classify(self, model: str, inputs: Input | Sequence[Input], **options: Any) -> Classification:
        """Send one request. Options: `top_k`, `raw_scores`, `truncate`, `priority`, `request_id`; of a model
        that labels tokens also `aggregation` and `ignore_labels`."""
        call = messages.classify_call(model, inputs, **options)
        answer = messages.read_object(self._url, self._send(call))
        return classification(answer, len(call.body["inputs"]))

    def classify_all(
        self, model: str, inputs: Iterable[Input], batch_size: int = 64, **options: Any
    ) -> Iterator[Prediction]:
        """Yield the predictions of any number of inputs, in order; one request per `batch_size` inputs."""
        for batch in messages.batched(inputs, batch_size):
            yield from self.classify(model, batch, **options).predictions

    def rerank(self, model: str, query: str, documents: Sequence[str], **options: Any) -> tuple[Ranked, ...]:
        """Rank documents with a cross-encoder, the best first. Options: `top_n`, `raw_scores`, `truncate`."""
        call = messages.rerank_call(model, query, documents, **options)
        return messages.ranking(messages.read_object(self._url, self._send(call)))

    def score(self, model: str, pairs: Sequence[TextPair], **options: Any) -> list[float]:
        """The score of each pair by a cross-encoder. Options: `raw_scores`, `truncate`."""
        call = messages.score_call(model, pairs, **options)
        return messages.pair_scores(messages.read_object(self._url, self._send(call)))

    def config(self, model: str) -> dict[str, Any]:
        """The model's description, limits and card."""
        return messages.read_object(self._url, self._send(messages.config_call(model)))

    def place(self, model: str, placement: dict[str, Any]) -> dict[str, Any]:
        """The cost of another placement of a sharded model's experts. With `apply`, it is also applied."""
        return messages.read_object(self._url, self._send(messages.place_call(model, placement)))

    def index(self) -> list[dict[str, Any]]:
        """One entry per model: `name`, `version`, `state` and `reason` (empty if it is ready)."""
        return messages.read_index(self._url, self._send(messages.INDEX_CALL))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, call: messages.Call) -> httpx.Response:
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

    def _try(self, call: messages.Call, timeout_s: float) -> Result:
        headers = call.with_deadline(timeout_s)
        try:
            return self._http.request(
                call.method, self._url + call.path, json=call.body, headers=headers, timeout=timeout_s
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return error


class AsyncClient:
    """As `Client`, on one event loop."""

    def __init__(
        self,
        url: str = messages.DEFAULT_URL,
        timeout_s: float = messages.DEFAULT_TIMEOUT_S,
        *,
        token: str | None = None,
        retry: Retry | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._retry = retry or Retry()
        self._http = httpx.AsyncClient(transport=transport, headers=messages.default_headers(token))

    async def classify(self, model: str, inputs: Input | Sequence[Input], **options: Any) -> Classification:
        """As `Client.classify`."""
        call = messages.classify_call(model, inputs, **options)
        answer = messages.read_object(self._url, await self._send(call))
        return classification(answer, len(call.body["inputs"]))

    async def classify_all(
        self,
        model: str,
        inputs: Iterable[Input],
        batch_size: int = 64,
        concurrency: int = 4,
        **options: Any,
    ) -> AsyncIterator[Prediction]:
        """Yield the predictions of any number of inputs, in order, with up to `concurrency` open requests."""
        waiting: list[asyncio.Task[Classification]] = []
        try:
            for batch in messages.batched(inputs, batch_size):
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

    async def rerank(
        self, model: str, query: str, documents: Sequence[str], **options: Any
    ) -> tuple[Ranked, ...]:
        """As `Client.rerank`."""
        call = messages.rerank_call(model, query, documents, **options)
        return messages.ranking(messages.read_object(self._url, await self._send(call)))

    async def score(self, model: str, pairs: Sequence[TextPair], **options: Any) -> list[float]:
        """As `Client.score`."""
        call = messages.score_call(model, pairs, **options)
        return messages.pair_scores(messages.read_object(self._url, await self._send(call)))

    async def config(self, model: str) -> dict[str, Any]:
        """As `Client.config`."""
        return messages.read_object(self._url, await self._send(messages.config_call(model)))

    async def place(self, model: str, placement: dict[str, Any]) -> dict[str, Any]:
        """As `Client.place`."""
        return messages.read_object(self._url, await self._send(messages.place_call(model, placement)))

    async def index(self) -> list[dict[str, Any]]:
        """As `Client.index`."""
        return messages.read_index(self._url, await self._send(messages.INDEX_CALL))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _send(self, call: messages.Call) -> httpx.Response:
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

    async def _try(self, call: messages.Call, timeout_s: float) -> Result:
        headers = call.with_deadline(timeout_s)
        try:
            return await self._http.request(
                call.method, self._url + call.path, json=call.body, headers=headers, timeout=timeout_s
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return error
