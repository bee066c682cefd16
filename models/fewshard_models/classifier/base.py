"""What a classifier can do; the server, the evaluation and the Python API ask for nothing else.

This file imports neither torch nor transformers, so that processes that run no network stay small.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from fewshard_core.activation import activate
from fewshard_core.values import Diagnosis, ExpertCounts, Input, Item, ModelInfo, ModelOutput
from fewshard_models.classifier.batching import MAX_BATCH_ITEMS, batches, max_batch_tokens

Value = Input | str | tuple[str, str] | Path | bytes | NDArray[np.uint8]
"""One input as a user of the Python API gives it."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """The answers to N inputs, in their order; C is the number of the model's labels.

    labels: the best label of each input.
    scores: fp32 [N, C], the logits after the activation of the checkpoint's `problem_type`.
    logits: fp32 [N, C].
    """

    labels: list[str]
    scores: NDArray[np.float32]
    logits: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.labels)


class Preprocessor(Protocol):
    """Turns inputs into items. It can be pickled: a server prepares in another process than it runs."""

    def estimate(self, inputs: Sequence[Input]) -> int:
        """An upper estimate of the inputs' tokens, without tokenising them."""
        ...

    def items(self, inputs: Sequence[Input], truncate: bool) -> list[Item]:
        """One item an input, in order. Raises UnusableInput naming the first that cannot be used."""
        ...

    def to_input(self, value: Value) -> Input:
        """What a user's value means to this model. Raises TypeError where it means nothing."""
        ...

    def from_card(self, stored: str) -> Input:
        """A golden input as a card stores it."""
        ...


class Classifier(ABC):
    """One loaded model. `prepare` and `run` may be called from different threads.

    info: what the model is.
    preprocessor: what makes its items.
    """

    info: ModelInfo
    preprocessor: Preprocessor

    def estimate_tokens(self, inputs: Sequence[Input]) -> int:
        """An upper estimate of the tokens that these inputs cost; cheap."""
        return self.preprocessor.estimate(inputs)

    def prepare(self, inputs: Sequence[Input], truncate: bool = True) -> list[Item]:
        """Tokenise or decode the inputs; one item each, in order.

        `truncate`: cut texts at the model's `max_tokens`; else one that is longer cannot be used.
        Raises UnusableInput naming the first input that cannot be used.
        """
        return self.preprocessor.items(inputs, truncate)

    @abstractmethod
    def run(self, items: Sequence[Item]) -> ModelOutput:
        """One batch. The logits are in the order of the items."""

    def close(self) -> None:  # noqa: B027  most classifiers have nothing to give back
        """Give back what outlives the object: processes, connections."""

    def __call__(self, inputs: Sequence[Value] | NDArray[np.uint8], truncate: bool = True) -> Predictions:
        """Classify any number of inputs, batched as the server batches them.

        A text model takes texts and (text, pair) tuples; an image model takes paths, the bytes of image
        files, and uint8 arrays [height, width, 3] RGB. Both take the values of `fewshard_core.values`.
        Raises UnusableInput naming the first input that cannot be used, TypeError for another type.
        """
        given = [self.preprocessor.to_input(each) for each in inputs]
        return predictions(self.info, self.run_all(self.prepare(given, truncate) if given else []))

    def run_all(self, items: Sequence[Item]) -> NDArray[np.float32]:
        """fp32 logits [len(items), C] of any number of items, in batches, the shortest items first."""
        logits = np.empty((len(items), len(self.info.labels)), dtype=np.float32)
        for rows in batches(items, max_batch_tokens(self.info.device), MAX_BATCH_ITEMS):
            logits[rows] = self.run([items[row] for row in rows]).logits
        return logits


def predictions(info: ModelInfo, logits: NDArray[np.float32]) -> Predictions:
    """The answers that fp32 logits [N, C] of this model stand for."""
    labels = [info.labels[best] for best in logits.argmax(axis=1)]
    return Predictions(labels, activate(logits, info.problem_type), logits)


@runtime_checkable
class CountsExperts(Protocol):
    """A model that may have experts."""

    def expert_counts(self) -> ExpertCounts | None:
        """Routing counts since the model was loaded; None where it has no experts."""
        ...


@runtime_checkable
class Probeable(Protocol):
    """A model that can be looked into while it runs."""

    def diagnose(self, share: float) -> None:
        """Look more closely at this share of the items, 0 to 1, from now on."""
        ...


@runtime_checkable
class Probed(Protocol):
    """A model that says what a closer look has found."""

    def diagnosis(self) -> Diagnosis | None:
        """What was found; None where nothing was looked at."""
        ...


@runtime_checkable
class ChecksItself(Protocol):
    """A model that knows some right answers."""

    def self_check(self) -> None:
        """Compare its answers with the right ones. Raises an error that names the worst difference."""
        ...


@runtime_checkable
class ReportsProblems(Protocol):
    """A model that may be unable to answer for a while."""

    def problem(self) -> str:
        """Why it cannot answer at present; "" where it can. Asked often, from any thread."""
        ...
