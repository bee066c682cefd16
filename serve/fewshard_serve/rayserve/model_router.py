"""The gateway's view of the hosts: a model index, and calls with retries. Without Ray; `gateway` wraps it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fewshard_serve.core import Classified, PredictionRequest
from fewshard_serve.errors import NotFound, NotReady, ServeError, UnknownModel
from fewshard_serve.http.service import UNLOADED, ModelEntry, find_ready, joined_stats, stats_answer
from fewshard_serve.http.versions import AT, key_of
from fewshard_serve.metrics import Metrics, cluster_text, merge_expositions
from fewshard_serve.protocol.repository import Action
from fewshard_serve.rayserve.deployment_plan import AppSpec
from fewshard_serve.rayserve.discovery import FindTargets, Replicas, http_discovery
from fewshard_serve.rayserve.handles import HostCalls
from fewshard_serve.rayserve.model_changes import ChangeQueue

logger = logging.getLogger(__name__)

STATES_TIMEOUT_S = 2.0
METRICS_TIMEOUT_S = 0.7
"""A scrape must be answered within a second, so replicas that hang are left out."""
STARTING_REFRESH_S = 0.25
STEADY_REFRESH_S = 2.0
NUM_TRIES = 2
"""A classification changes no state, so it is retried on another replica if one died or is not ready."""


class ModelRouter:
    """The `GatewayService`: an index that `keep_fresh` maintains in memory, and calls to the hosts in it.

    why_waiting: given a host that has not answered yet, returns the resources the cluster lacks for it, or
        "".
    """

    def __init__(
        self,
        hosts: Sequence[AppSpec],
        calls: HostCalls,
        metrics: Metrics,
        labels: Mapping[str, str],
        why_waiting: Callable[[AppSpec], str] = lambda host: "",
        find_targets: FindTargets | None = None,
    ) -> None:
        self._place(hosts)
        self._why_waiting = why_waiting
        self._calls = calls
        self._unloaded: tuple[ModelEntry, ...] = ()
        self._first = frozenset(self._app_of)
        self._changes = ChangeQueue()
        self._metrics = metrics
        self._labels = labels
        self._find_targets = find_targets
        self._replicas = Replicas()
        self._entries = {name: _loading(name) for name in self._app_of}
        self._is_draining = False

    def _place(self, hosts: Sequence[AppSpec]) -> None:
        self._hosts = {host.app: host for host in hosts}
        self._app_of = {model.name: host.app for host in hosts for model in host.models}

    async def model_index(self) -> Sequence[ModelEntry]:
        return [*self._entries.values(), *self._unloaded]

    async def show(self, hosts: Sequence[AppSpec], unloaded: Collection[str]) -> None:
        """Serve these models from now on. The new ones have been loaded, and are asked for their state first.

        unloaded: models that are still listed.
        """
        new = [host for host in hosts if any(model.name not in self._entries for model in host.models)]
        answers = await asyncio.gather(*(self._states(host.app) for host in new))
        seen = {entry.name: entry for entries in answers for entry in reversed(entries)}
        known = {**seen, **self._entries}
        self._place(hosts)
        self._entries = {name: known.get(name) or _loading(name) for name in self._app_of}
        self._unloaded = tuple(
            ModelEntry(name, "UNAVAILABLE", reason=UNLOADED) for name in sorted({*unloaded} - {*self._app_of})
        )

    @property
    def changes(self) -> ChangeQueue:
        """The models that requests want loaded or unloaded."""
        return self._changes

    async def change(self, action: Action, model: str) -> None:
        await self._changes.make(action, model)

    async def ready(self) -> bool:
        """Whether every model takes requests. One that is added later does not make the server unready."""
        entries = self._entries.items()
        return not self._is_draining and all(
            entry.state == "READY" or (entry.state == "LOADING" and name not in self._first)
            for name, entry in entries
        )

    @property
    def is_loading(self) -> bool:
        """Whether any model has neither loaded nor failed."""
        return any(entry.state == "LOADING" for entry in self._entries.values())

    async def classify(self, model: str, request: PredictionRequest) -> Classified:
        if self._is_draining:
            raise NotReady("the server is draining; come back soon")
        if model.partition(AT)[0] not in self._app_of:
            raise UnknownModel(model, sorted(self._app_of))
        answer = await self._call_host(model, request)
        if isinstance(answer, ServeError):
            raise answer
        return answer

    async def merged_stats(self, model: str) -> dict[str, Any]:
        name, _, version = model.partition(AT)
        info = find_ready(await self.model_index(), name, version)
        if versions := self._entries[name].versions if not version else ():
            keys = [key_of(name, each.version) for each in versions]
            return joined_stats(await asyncio.gather(*map(self.merged_stats, keys)))
        parts = await self._calls.all(self._app_of[name], "stats_part", model, timeout_s=STATES_TIMEOUT_S)
        if not parts:
            raise NotReady(f"no replica of {model} answers; come back soon")
        return stats_answer(info, parts)

    async def metrics(self, is_open_metrics: bool) -> bytes:
        answers = await self._call_each("metrics_part", is_open_metrics)
        is_up = self._replicas.update({app: list(map(_name_of, some)) for app, some in answers.items()})
        parts = [each[1] for some in answers.values() for each in some if not isinstance(each, Exception)]
        return await asyncio.to_thread(self._joined, parts, is_up, is_open_metrics)

    async def own_metrics(self, is_open_metrics: bool) -> bytes:
        is_up = self._replicas.update(await self._call_each("name"))
        return await asyncio.to_thread(self._joined, [], is_up, is_open_metrics)

    async def metrics_targets(self) -> list[dict[str, Any]]:
        if self._find_targets is None:
            raise NotFound("these replicas cannot be reached one by one; scrape /metrics instead")
        return http_discovery(await self._find_targets())

    async def _call_each(self, method: str, *args: Any) -> dict[str, list[Any]]:
        apps = list(self._hosts)
        asking = (self._calls.each(app, method, *args, timeout_s=METRICS_TIMEOUT_S) for app in apps)
        return dict(zip(apps, await asyncio.gather(*asking), strict=True))

    def _joined(self, parts: list[bytes], is_up: Mapping[tuple[str, str], bool], is_open: bool) -> bytes:
        """Merge the metrics. Every replica has already added its own labels."""
        wanted = {app: host.min_replicas for app, host in self._hosts.items()}
        own = self._metrics.render(self._labels, is_open)
        return merge_expositions([*parts, own, cluster_text(is_up, wanted, is_open)])

    async def reload_tokens(self) -> int:
        answers = await asyncio.gather(
            *(self._calls.all(app, "reload_tokens", timeout_s=STATES_TIMEOUT_S) for app in self._hosts)
        )
        return sum(has_reloaded for replicas in answers for has_reloaded in replicas)

    async def refresh(self) -> None:
        """Read the state of every host's models once."""
        await asyncio.gather(*(self._refresh_host(app) for app in list(self._hosts)))

    async def keep_fresh(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Refresh until cancelled, more often while models are loading. `sleep` takes seconds."""
        while True:
            await self.refresh()
            await sleep(STARTING_REFRESH_S if self.is_loading else STEADY_REFRESH_S)

    def begin_drain(self) -> None:
        """Refuse new requests from now on."""
        self._is_draining = True
        self._changes.close()

    async def _call_host(self, model: str, request: PredictionRequest) -> Classified | ServeError:
        app = self._app_of[model.partition(AT)[0]]
        answer: Classified | ServeError = NotReady(f"no replica of {model} answers; come back soon")
        for _ in range(NUM_TRIES):
            try:
                answer = await self._calls.one(app, "classify_for_gateway", model, request)
            except ServeError:  # a replica was there
                raise
            except Exception:  # whichever error Ray raises here, the replica did not answer
                logger.exception("a replica of %s did not answer", app)
                continue
            if not isinstance(answer, NotReady):
                break
        return answer

    async def _refresh_host(self, app: str) -> None:
        found = await self._states(app)
        for name in [name for name, at in self._app_of.items() if at == app]:
            seen = [entry for entry in found if entry.name == name]
            self._entries[name] = _best(seen) or self._unanswered(name)

    async def _states(self, app: str) -> list[ModelEntry]:
        answers = await self._calls.all(app, "model_states", timeout_s=STATES_TIMEOUT_S)
        return [entry for entries in answers for entry in entries]

    def _unanswered(self, name: str) -> ModelEntry:
        known = self._entries[name]
        if known.state == "LOADING":
            return replace(known, reason=self._why_waiting(self._hosts[self._app_of[name]]) or "loading")
        return ModelEntry(name, "UNAVAILABLE", known.version, "no replica answers", known.info)


def _loading(name: str) -> ModelEntry:
    return ModelEntry(name, "LOADING", reason="loading")


def _name_of(answer: tuple[str, bytes] | Exception) -> str | Exception:
    return answer if isinstance(answer, Exception) else answer[0]


def _best(entries: Sequence[ModelEntry]) -> ModelEntry | None:
    """Return the entry of the most ready replica."""
    ready = [entry for entry in entries if entry.state == "READY"]
    return next(iter([*ready, *entries]), None)
