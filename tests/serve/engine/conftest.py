"""A model of numpy alone, whose inputs say how it shall behave."""

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from fewshard_core.values import Input, Item, ModelInfo, ModelOutput, TextInput
from fewshard_models.classifier.base import Classifier
from fewshard_serve.errors import UnusableItem


class FakeModel(Classifier):
    """Logits of "7" are [7, -7]; one token a character.

    "crash" raises, "nan" gives NaN, "spoil" makes the whole batch NaN, "refuse" is refused while running,
    "unusable" while preparing. `gate` holds every forward pass until it is set; `batches` lists what ran.
    """

    def __init__(self, name: str = "fake", max_batch_items: int = 10_000) -> None:
        self.info = ModelInfo(
            name=name,
            task="text",
            kind="dense",
            labels=("no", "yes"),
            problem_type="single_label_classification",
            architecture="fake",
            dtype="fp32",
            device="cpu",
            max_tokens=128,
        )
        self.gate = threading.Event()
        self.gate.set()
        self.running = threading.Event()
        self.batches: list[list[str]] = []
        self.prepare_s = 0.0
        self.num_prepared = 0
        self._max_batch_items = max_batch_items

    def estimate_tokens(self, inputs: Sequence[Input]) -> int:
        return sum(len(text_of(one)) for one in inputs)

    def costs(self, inputs: Sequence[Input]) -> list[int]:
        return [len(text_of(one)) for one in inputs]

    def prepare(self, inputs: Sequence[Input], truncate: bool = True) -> list[Item]:
        time.sleep(self.prepare_s)
        self.num_prepared += len(inputs)
        for index, one in enumerate(inputs):
            if text_of(one) == "unusable":
                raise UnusableItem(index, "it says so")
            if text_of(one) == "broken":
                raise KeyError("tokenizer")
        return [Item(text_of(one), len(text_of(one))) for one in inputs]

    def run(self, items: Sequence[Item]) -> ModelOutput:
        texts = [item.features for item in items]
        self.batches.append(texts)
        self.running.set()
        assert self.gate.wait(30)
        if "crash" in texts or len(texts) > self._max_batch_items:
            raise RuntimeError("device trouble")
        if "refuse" in texts:
            raise UnusableItem(texts.index("refuse"), "the model says no")
        logits = np.array([logits_of(text) for text in texts], dtype=np.float32)
        if "spoil" in texts:
            logits[:] = np.nan
        return ModelOutput(logits, num_padding_tokens=1)


def text_of(one: Input) -> str:
    assert isinstance(one, TextInput)
    return one.text


def logits_of(text: str) -> list[float]:
    number = float(text) if text.lstrip("-").isdigit() else np.nan
    return [number, -number]


@pytest.fixture(scope="session")
def new_model() -> Callable[..., FakeModel]:
    return FakeModel


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture(autouse=True)
def no_thread_left() -> object:
    """Every test ends the threads it started."""
    before = set(threading.enumerate())
    yield
    left = [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("fewshard")]
    assert not left, f"threads left running: {left}"
