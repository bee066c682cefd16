"""The models of one process behind the HTTP layer, for tests that need no Ray."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fewshard_serve.errors import NotFound
from fewshard_serve.http.service import ServedModel, find_model, stats_answer


@dataclass(frozen=True)
class LocalService:
    """A `HostService` of one process that has no other replicas."""

    served: Mapping[str, ServedModel]
    metrics: bytes = b""

    def models(self) -> Mapping[str, ServedModel]:
        return self.served

    async def metrics_text(self, is_open_metrics: bool) -> bytes:
        return self.metrics

    async def merged_stats(self, model: str) -> dict[str, Any]:
        served = find_model(self.served, model)
        return stats_answer(served.info, [served.stats])

    async def merged_experts(self, model: str) -> dict[str, Any] | None:
        experts = find_model(self.served, model).experts()
        return None if experts is None else {**experts, "replicas": 1}

    async def place(self, model: str, wanted: dict[str, Any]) -> dict[str, Any]:
        find_model(self.served, model)
        raise NotFound(f"{model} is not sharded")
