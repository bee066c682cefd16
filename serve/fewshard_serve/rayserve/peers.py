"""Speaks for all replicas of a host, whichever was asked; the `HostService` of the HTTP layer."""

from collections.abc import Mapping
from typing import Any, Protocol

from fewshard_serve.engine.routing import describe_routing, merge_routing
from fewshard_serve.http.service import ServedModel, find_model, stats_answer
from fewshard_serve.rayserve.cascading import Cascading
from fewshard_serve.rayserve.hosting import Hosting


class AskPeers(Protocol):
    """Call a method of every replica of this host, this one too; the answers of those that gave one."""

    async def __call__(self, method: str, *args: Any) -> list[Any]: ...


class MergedService:
    """A host with one replica or many. Those that do not answer are left out; `replicas` counts the rest."""

    def __init__(self, hosting: Hosting | Cascading, labels: Mapping[str, str], ask_peers: AskPeers) -> None:
        self._hosting = hosting
        self._labels = labels
        self._ask_peers = ask_peers

    def models(self) -> Mapping[str, ServedModel]:
        return self._hosting.models

    def metrics_text(self) -> bytes:
        return self._hosting.metrics.render(self._labels)

    async def merged_stats(self, model: str) -> dict[str, Any]:
        info = find_model(self.models(), model).info
        return stats_answer(info, await self._ask_peers("stats_part", model))

    async def merged_experts(self, model: str) -> dict[str, Any] | None:
        find_model(self.models(), model)
        parts = await self._ask_peers("routing_part", model)
        routings = [part for part in parts if part is not None]
        if not routings:
            return None
        return {**describe_routing(merge_routing(routings)), "replicas": len(routings)}
