"""HTTP client for a server's models, statistics and expert counters. Used by `runner` and `sweep`."""

from dataclasses import dataclass, field
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from fewshard_loadtest.errors import ScenarioError, ServerGone

TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Counters:
    """A model's counters since it was loaded.

    items: classified items.
    batches: executed batches.
    infer_s: time in the model, summed over batches.
    stages_s: seconds of successful requests, summed by stage.
    experts: rows by layer and expert.
    """

    items: int = 0
    batches: int = 0
    infer_s: float = 0.0
    stages_s: dict[str, float] = field(default_factory=dict)
    experts: dict[str, dict[str, float]] = field(default_factory=dict)

    def since(self, before: "Counters") -> "Counters":
        """The increase since `before`."""
        return Counters(
            self.items - before.items,
            self.batches - before.batches,
            self.infer_s - before.infer_s,
            {stage: seconds - before.stages_s.get(stage, 0.0) for stage, seconds in self.stages_s.items()},
            {
                layer: {e: n - before.experts.get(layer, {}).get(e, 0.0) for e, n in experts.items()}
                for layer, experts in self.experts.items()
            },
        )


class Server:
    """Client of one server. Methods raise `ServerGone` if it does not respond."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._client = httpx.Client(base_url=self.url, timeout=TIMEOUT_S)

    def close(self) -> None:
        self._client.close()

    def is_live(self) -> bool:
        """Whether the server reports that it is live; False if it does not respond."""
        try:
            return self._client.get("/v2/health/live").is_success
        except httpx.TransportError:
            return False

    def config_of(self, model: str) -> dict[str, Any]:
        """The model's configuration and card. Raises `ScenarioError` for a model that is not served."""
        answer = self._get(f"/v2/models/{model}/config")
        if answer.status_code == 404:
            raise ScenarioError(f"{self.url}: {answer.json().get('error', f'no model {model!r}')}")
        config: dict[str, Any] = answer.raise_for_status().json()
        return config

    def counters_of(self, model: str) -> Counters:
        """The model's counters, with those of its experts if it is sparse; empty if the server has none."""
        answer = self._get(f"/v2/models/{model}/stats")
        if not answer.is_success:
            return Counters()
        (stats,) = answer.json()["model_stats"]
        stages = {
            name: entry["ns"] / 1e9
            for name, entry in stats["inference_stats"].items()
            if name.startswith(("queue", "compute"))
        }
        infer_s = sum(batch["compute_infer"]["ns"] for batch in stats["batch_stats"]) / 1e9
        return Counters(
            stats["inference_count"], stats["execution_count"], infer_s, stages, self._experts_of(model)
        )

    def _experts_of(self, model: str) -> dict[str, dict[str, float]]:
        answer = self._get("/metrics")
        return expert_rows(answer.text, model) if answer.is_success else {}

    def _get(self, path: str) -> httpx.Response:
        try:
            return self._client.get(path)
        except httpx.TransportError as error:
            raise ServerGone(f"{self.url} does not answer: {error}") from None


def expert_rows(exposition: str, model: str) -> dict[str, dict[str, float]]:
    """`fewshard_expert_tokens_total` of one model by layer and expert, summed over its replicas."""
    rows: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            if sample.name == "fewshard_expert_tokens_total" and sample.labels.get("model") == model:
                layer = rows.setdefault(sample.labels["layer"], {})
                expert = sample.labels["expert"]
                layer[expert] = layer.get(expert, 0.0) + sample.value
    return rows
