"""What a server says of itself over HTTP: models and cards, statistics, expert counters; `campaign` asks."""

from dataclasses import dataclass, field
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from fewshard_loadtest.errors import ScenarioError, ServerGone

TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Counters:
    """Since the model was loaded. `infer_s`: the runner's time in the model, over all batches; `stages_s`:
    summed seconds of answered requests by stage; `experts`: rows by layer and expert."""

    items: int = 0
    batches: int = 0
    infer_s: float = 0.0
    stages_s: dict[str, float] = field(default_factory=dict)
    experts: dict[str, dict[str, float]] = field(default_factory=dict)

    def since(self, before: "Counters") -> "Counters":
        """What came in between."""
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
    """Asks one server. Every method raises `ServerGone` where it does not answer."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._client = httpx.Client(base_url=self.url, timeout=TIMEOUT_S)

    def close(self) -> None:
        self._client.close()

    def is_live(self) -> bool:
        """Whether it says that it is."""
        try:
            return self._client.get("/v2/health/live").is_success
        except httpx.TransportError:
            return False

    def config_of(self, model: str) -> dict[str, Any]:
        """What the model is, and its card. Raises `ScenarioError` for one that is not served."""
        answer = self._get(f"/v2/models/{model}/config")
        if answer.status_code == 404:
            raise ScenarioError(f"{self.url}: {answer.json().get('error', f'no model {model!r}')}")
        config: dict[str, Any] = answer.raise_for_status().json()
        return config

    def counters_of(self, model: str) -> Counters:
        """Statistics and, of a sparse model, its experts' counters; empty where the server keeps none."""
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
    """`fewshard_expert_tokens_total` of one model by layer and expert, summed over replicas."""
    rows: dict[str, dict[str, float]] = {}
    for family in text_string_to_metric_families(exposition):
        for sample in family.samples:
            if sample.name == "fewshard_expert_tokens_total" and sample.labels.get("model") == model:
                layer = rows.setdefault(sample.labels["layer"], {})
                expert = sample.labels["expert"]
                layer[expert] = layer.get(expert, 0.0) + sample.value
    return rows
