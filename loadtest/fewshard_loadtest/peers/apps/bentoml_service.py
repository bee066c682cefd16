"""BentoML with a batchable API around a text classifier; runs in BentoML's own environment."""

import json
import os
from typing import Any

import bentoml
import engine

SETTINGS = json.loads(os.environ["PEER_SETTINGS"])
QUIET = {} if SETTINGS["name"] == "as shipped" else {"logging": {"access": {"enabled": False}}}
BATCHING = {} if SETTINGS["batch"] is None else {"max_batch_size": SETTINGS["batch"]}


@bentoml.service(workers=SETTINGS["workers"] or 1, **QUIET)
class Classifier:
    def __init__(self) -> None:
        self.classifier = engine.load(SETTINGS)

    @bentoml.api(batchable=True, **BATCHING)
    def classify(self, texts: list[str]) -> list[dict[str, Any]]:
        return [{"label": label, "score": score} for label, score in self.classifier(texts)]
