"""Answers for all replicas of a host, whichever replica got the request: the HTTP layer's `HostService`."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from fewshard_serve.errors import NotReady, ServeError
from fewshard_serve.expert_statistics import merge_routing
from fewshard_serve.http.service import ServedModel, find_model, stats_answer
from fewshard_serve.protocol.experts import describe_diagnoses, describe_routing
from fewshard_serve.rayserve.cascade_replica import CascadeReplica
from fewshard_serve.rayserve.replica import Replica


class AskPeers(Protocol):
    """Calls a method on every replica of this host, this one included. Returns the answers that arrived."""

    async def __call__(self, method: str, *args: Any) -> list[Any]: ...


class MergedService:
    """A host with one or more replicas. Silent replicas are left out; `replicas` counts the others."""

    def __init__(
        self, replica: Replica | CascadeReplica, labels: Mapping[str, str], ask_peers: AskPeers
    ) -> None:
        self._replica = replica
        self._labels = labels
        self._ask_peers = ask_peers

    def models(self) -> Mapping[str, ServedModel]:
        return self._replica.models

    async def metrics_text(self, is_open_metrics: bool) -> bytes:
        """Render off the event loop, because reading a device may block."""
        return await asyncio.to_thread(self._replica.metrics.render, self._labels, is_open_metrics)

    async def merged_stats(self, model: str) -> dict[str, Any]:
        info = find_model(self.models(), model).info
        return stats_answer(info, await self._ask_peers("stats_part", model))

    async def merged_experts(self, model: str) -> dict[str, Any] | None:
        find_model(self.models(), model)
        parts = await self._ask_peers("routing_part", model)
        routings = [part for part in parts if part is not None]
        if not routings:
            return None
        hosted = self._replica.hosted.get(model)
        group = None if hosted is None else hosted.group()
        found = {**describe_routing(merge_routing(routings), group), "replicas": len(routings)}
        looked = [part for part in await self._ask_peers("diagnosis_part", model) if part is not None]
        return {**found, **describe_diagnoses(looked, find_model(self.models(), model).info.labels)}

    async def place(self, model: str, wanted: dict[str, Any]) -> dict[str, Any]:
        find_model(self.models(), model)
        parts = await self._ask_peers("place_part", model, wanted)
        answers = [part for part in parts if not isinstance(part, ServeError)]
        if not answers:
            raise next(iter(parts), NotReady(f"no replica of {model} answers; come back soon"))
        return {**merged_change(answers), "replicas": len(answers)}


def merged_change(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sum the moves and bytes of all replicas. `applied` is true if every replica applied the change."""
    return {
        "moves": sum(answer["moves"] for answer in answers),
        "bytes": sum(answer["bytes"] for answer in answers),
        "applied": all(answer["applied"] for answer in answers),
    }
