"""Models of numpy alone for a real server; replicas import this file by the loader's path."""

import os
import time
from pathlib import Path

import numpy as np

from fewshard_core.values import Diagnosis, ExpertCounts, Item, ModelInfo, ModelOutput, TextInput
from fewshard_models.classifier.base import Classifier
from fewshard_serve.core import GroupState
from fewshard_serve.errors import NotReady, UnusableItem

WORSE = (0, 1, 7)
"""A model of the kind "worse" answers the numbers that end so as a contrary one does."""
SERVED = {"labels": {"no": 0.5, "yes": 0.5}, "confidence": {"0.5": 0.0, "0.9": 0.5}}


class FakePreparing:
    def probe_inputs(self):
        return [TextInput("1")]

    def estimate(self, inputs):
        return sum(len(one.text) for one in inputs)

    def costs(self, inputs):
        return [len(one.text) for one in inputs]

    def items(self, inputs, truncate):
        for index, one in enumerate(inputs):
            if one.text == "unusable":
                raise UnusableItem(index, "it says so")
        return [Item(one.text, len(one.text)) for one in inputs]


class FakeModel(Classifier):
    """Text "7" has the logits [7, -7], of a contrary model [-7, 7]. "sleep 1.5" takes as long, "spin 1.5"
    computes as long, "crash" raises, "die" ends the process. "hold F" leaves the file F.held and waits until
    there is a file F. "hang F" sleeps for ever for the first who asks, and leaves the file F. A model whose
    kind is a file answers nobody while the file is there, as it says: it raises, hangs, dies or gives NaN."""

    preprocessor = FakePreparing()

    def __init__(self, name, kind):
        self.kind = kind
        self.num_rows = 0
        self.info = ModelInfo(
            name=name,
            task="text",
            kind=kind,
            labels=("cat", "dog") if kind == "animals" else ("no", "yes"),
            problem_type="single_label_classification",
            architecture="fake",
            dtype="fp32",
            device="cpu",
            max_tokens=128,
            card={
                "accuracy": 0.9,
                "macs": 1e6,
                "parameters_total": 100,
                "parameters_active": 50,
                "extra": {"served": SERVED},
            },
        )

    def run(self, items):
        return ModelOutput(np.array([self.logits(item.features) for item in items], np.float32))

    def logits(self, text):
        self.num_rows += 1
        ill = Path(self.kind)
        while ill.is_file() and ill.read_text() == "hang":
            time.sleep(0.01)
        if ill.is_file():
            text = ill.read_text()
        if text == "crash":
            raise RuntimeError("device trouble")
        if text == "die":
            os._exit(1)
        if text.startswith("hang") and not Path(text.split()[1]).exists():
            Path(text.split()[1]).touch()
            time.sleep(3600)
        if text.startswith("hang"):
            text = "1"
        if text.startswith("spin"):
            until = time.process_time() + float(text.split()[1])
            while time.process_time() < until:
                pass
            text = "1"
        if text.startswith("hold"):
            Path(f"{text.split()[1]}.held").touch()
            while not Path(text.split()[1]).exists():
                time.sleep(0.005)
            text = "1"
        if text.startswith("sleep"):
            time.sleep(float(text.split()[1]))
            text = "1"
        flips = self.kind == "contrary" or (self.kind == "worse" and int(text) % 100 in WORSE)
        return [-float(text), float(text)] if flips else [float(text), -float(text)]

    def group(self):
        if self.kind != "group":
            return None
        return GroupState(3, 2, 4, 1, 6, False, (((0,), (1,), ()),))

    def diagnosis(self):
        if self.kind != "moe":
            return None
        return Diagnosis(3, (0.5, 0.75), np.array([[[4, 0]], [[0, 2]]]))

    def expert_counts(self):
        if self.kind not in ("moe", "group"):
            return None
        return ExpertCounts(
            tokens=np.array([[self.num_rows, 0]]),
            probability=np.array([[self.num_rows, 0.0]]),
            entropy=np.array([0.0]),
            rows=np.array([self.num_rows]),
            top_k=1,
            shard_tokens=np.array([[0, self.num_rows, 0]]) if self.kind == "group" else None,
        )

    def self_check(self):
        if self.kind == "damaged":
            raise NotReady("golden input 3: expected [1, -1], got [5, 5]")


def load_model(name, path, device, dtype):
    """`path` is the kind; "missing" cannot be loaded, "deadly" ends the process, "heavy" and "endless" take
    their time."""
    if path in ("heavy", "endless"):
        time.sleep(1 if path == "heavy" else 3600)
    if path == "deadly":
        os._exit(1)
    if path == "missing":
        raise FileNotFoundError(f"no checkpoint for {name}")
    return FakeModel(name, path)
