"""BentoML with a batchable API around a Hugging Face model; runs in BentoML's own environment."""

import json
import os
from typing import Any

import bentoml
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

SETTINGS = json.loads(os.environ["PEER_SETTINGS"])
BATCHING = {} if SETTINGS["batch"] is None else {"max_batch_size": SETTINGS["batch"]}


@bentoml.service(workers=SETTINGS["workers"] or 1)
class Classifier:
    def __init__(self) -> None:
        if SETTINGS["threads"]:
            torch.set_num_threads(SETTINGS["threads"])
        self.tokenizer = AutoTokenizer.from_pretrained(SETTINGS["model"])
        dtype = getattr(torch, SETTINGS["torch_dtype"])
        self.model = AutoModelForSequenceClassification.from_pretrained(SETTINGS["model"], dtype=dtype).eval()

    @bentoml.api(batchable=True, **BATCHING)
    def classify(self, texts: list[str]) -> list[dict[str, Any]]:
        encoded = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            logits = self.model(**encoded).logits.float()
        scores, classes = logits.softmax(-1).max(-1)
        labels = [self.model.config.id2label[index] for index in classes.tolist()]
        return [
            {"label": label, "score": score} for label, score in zip(labels, scores.tolist(), strict=True)
        ]
