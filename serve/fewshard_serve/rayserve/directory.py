"""What the gateway knows of the hosts and how it asks them, without Ray; `gateway` wraps it for Ray Serve."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from fewshard_serve.core import ANYBODY, Caller, Classified, Input
from fewshard_serve.errors import FewshardError, NotReady, UnknownModel
from fewshard_serve.http.service import ModelEntry
from fewshard_serve.metrics import Metrics, merge_expositions
from fewshard_serve.rayserve.specs import AppSpec

logger = logging.getLogger(__name__)

STATES_TIMEOUT_S = 2.0
METRICS_TIMEOUT_S = 5.0
STARTING_REFRESH_S = 0.25
STEADY_REFRESH_S = 2.0
NUM_TRIES = 2
"""A classification changes nothing, so one whose replica died, or cannot, is asked again of another."""


class HostCalls(Protocol):
    """How hosts are reached, by the name of their application."""

    async def all(self, app: str, method: str, *args: Any, timeout_s: float) -> list[Any]:
        """The answers of those replicas that gave one in time."""

    async def one(self, app: str, method: str, *args: Any) -> Any:
        """The answer of one replica; raises whatever went wrong on the way."""


class Directory:
    """The `GatewayService`: an index kept in memory by `keep_fresh`, and calls to the hosts it lists.

    `why_waiting` is asked of a host that has not answered yet: what the cluster lacks for it, or "".
    """

    def __init__(
        self,
        hosts: Sequence[AppSpec],
        calls: HostCalls,
        metrics: Metrics,
        labels: Mapping[str, str],
        why_waiting: Callable[[AppSpec], str] = lambda host: "",
    ) -> None:
        self._hosts = {host.app: host for host in hosts}
        self._why_waiting = why_waiting
        self._app_of = {model.name: host.app for host in hosts for model in host.models}
        self._apps = [host.app for host in hosts]
        self._calls = calls
        self._metrics = metrics
        self._labels = labels
        self._entries = {name: ModelEntry(name, "LOADING", reason="loading") for name in self._app_of}
        self._is_draining = False

    async def model_index(self) -> Sequence[ModelEntry]:
        return list(self._entries.values())

    async def ready(self) -> bool:
        return not self._is_draining and all(entry.state == "READY" for entry in self._entries.values())

    @property
    def is_loading(self) -> bool:
        """Whether some model has neither loaded nor failed."""
        return any(entry.state == "LOADING" for entry in self._entries.values())

    async def classify(
        self,
        model: str,
        inputs: Sequence[Input],
        *,
        truncate: bool,
        timeout_s: float | None,
        caller: Caller = ANYBODY,
    ) -> Classified:
        if self._is_draining:
            raise NotReady("the server is draining; come back soon")
        if model not in self._app_of:
            raise UnknownModel(model, sorted(self._app_of))
        answer = await self._ask_host(model, list(inputs), truncate, timeout_s, caller)
        if isinstance(answer, FewshardError):
            raise answer
        return answer

    async def metrics(self) -> bytes:
        answers = await asyncio.gather(
            *(self._calls.all(app, "metrics_part", timeout_s=METRICS_TIMEOUT_S) for app in self._apps)
        )
        # Every replica has put its own labels on already.
        texts = [text for replicas in answers for text in replicas] + [self._metrics.render(self._labels)]
        return await asyncio.to_thread(merge_expositions, [({}, text) for text in texts])

    async def reload_tokens(self) -> int:
        answers = await asyncio.gather(
            *(self._calls.all(app, "reload_tokens", timeout_s=STATES_TIMEOUT_S) for app in self._apps)
        )
        return sum(has_reloaded for replicas in answers for has_reloaded in replicas)

    async def refresh(self) -> None:
        """Ask every host once for the state of its models."""
        await asyncio.gather(*(self._refresh_host(app) for app in self._apps))

    async def keep_fresh(self) -> None:
        """Refresh until cancelled, often while models are loading."""
        while True:
            await self.refresh()
            await asyncio.sleep(STARTING_REFRESH_S if self.is_loading else STEADY_REFRESH_S)

    def begin_drain(self) -> None:
        """Refuse new requests from now on."""
        self._is_draining = True

    async def _ask_host(
        self, model: str, inputs: list[Input], truncate: bool, timeout_s: float | None, caller: Caller
    ) -> Classified | FewshardError:
        app = self._app_of[model]
        answer: Classified | FewshardError = NotReady(f"no replica of {model} answers; come back soon")
        for _ in range(NUM_TRIES):
            try:
                answer = await self._calls.one(
                    app, "classify_for_gateway", model, inputs, truncate, timeout_s, caller
                )
            except Exception:  # whatever Ray raises here, the replica did not answer
                logger.exception("a replica of %s did not answer", app)
                continue
            if not isinstance(answer, NotReady):
                break
        return answer

    async def _refresh_host(self, app: str) -> None:
        answers = await self._calls.all(app, "model_states", timeout_s=STATES_TIMEOUT_S)
        for name in [name for name, at in self._app_of.items() if at == app]:
            seen = [entry for entries in answers for entry in entries if entry.name == name]
            self._entries[name] = _best(seen) or self._unanswered(name)

    def _unanswered(self, name: str) -> ModelEntry:
        known = self._entries[name]
        if known.state == "LOADING":
            return replace(known, reason=self._why_waiting(self._hosts[self._app_of[name]]) or "loading")
        return ModelEntry(name, "UNAVAILABLE", known.version, "no replica answers", known.info)


def _best(entries: Sequence[ModelEntry]) -> ModelEntry | None:
    """A model is as ready as the readiest of its replicas."""
    ready = [entry for entry in entries if entry.state == "READY"]
    return next(iter([*ready, *entries]), None)
