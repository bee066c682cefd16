"""The interface of a classifier, on which the server, the evaluation and the Python API depend.

This file imports neither torch nor transformers, so processes that run no network stay small.
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

PIXELS_PER_UNIT = 64
"""Decoding so many pixels takes as long as tokenising one character (docs/log.md)."""

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
    """Turns inputs into items. It can be pickled: a server prepares items and runs them in different
    processes."""

    def estimate(self, inputs: Sequence[Input]) -> int:
        """Return an upper estimate of the inputs' tokens, without tokenising them."""
        ...

    def costs(self, inputs: Sequence[Input]) -> list[int]:
        """Return the cost of preparing each input, without preparing it.

        A character of text counts 1, and so do `PIXELS_PER_UNIT` pixels. An input of another task costs 1,
        because `items` refuses it.
        """
        ...

    def items(self, inputs: Sequence[Input], truncate: bool) -> list[Item]:
        """Return one item an input, in order. Raises UnusableInput with the first unusable one."""
        ...

    def to_input(self, value: Value) -> Input:
        """Convert a user's value to an input of this model. Raises TypeError if it is not one."""
        ...

    def from_card(self, stored: str) -> Input:
        """Convert a golden input from the form in which a card stores it."""
        ...

    def probe_inputs(self) -> list[Input]:
        """Return made-up inputs of the sizes that matter: small, large, and at the model's limit."""
        ...

    def usual_inputs(self, number: int) -> list[Input]:
        """Return so many made-up inputs of the sizes that users send, to time the model with."""
        ...


class Classifier(ABC):
    """One loaded model. `prepare` and `run` may be called from different threads.

    info: description of the model.
    preprocessor: makes its items.
    """

    info: ModelInfo
    preprocessor: Preprocessor

    def estimate_tokens(self, inputs: Sequence[Input]) -> int:
        """Return an upper estimate of the tokens of these inputs; cheap."""
        return self.preprocessor.estimate(inputs)

    def costs(self, inputs: Sequence[Input]) -> list[int]:
        """Return the cost of preparing each input; cheap. `Preprocessor.costs` says in which unit."""
        return self.preprocessor.costs(inputs)

    def prepare(self, inputs: Sequence[Input], truncate: bool = True) -> list[Item]:
        """Tokenise or decode the inputs. Returns one item each, in order.

        `truncate`: cut texts to the model's `max_tokens`; otherwise longer ones are unusable. Raises
            UnusableInput with the index of the first unusable input.
        """
        return self.preprocessor.items(inputs, truncate)

    @abstractmethod
    def run(self, items: Sequence[Item]) -> ModelOutput:
        """Run one batch. The logits are in the order of the items."""

    def run_by(self, give_up_at: float, items: Sequence[Item]) -> ModelOutput:
        """Run one batch as `run` does. A model that batches wait for may raise instead of beginning one after
        this time, in seconds of `time.monotonic`."""
        return self.run(items)

    def probe_input(self) -> Input:
        """Return a small made-up input, by whose answer a server sees that the model still answers."""
        return self.preprocessor.probe_inputs()[0]

    def close(self) -> None:  # noqa: B027  most classifiers have nothing to release
        """Release what outlives the object: processes and connections."""

    def __call__(self, inputs: Sequence[Value] | NDArray[np.uint8], truncate: bool = True) -> Predictions:
        """Classify any number of inputs, in the same batches as the server.

        A text model takes texts and (text, pair) tuples. An image model takes paths, the bytes of image
        files, and uint8 arrays [height, width, 3] RGB. Both take the values of `fewshard_core.values`. Raises
        UnusableInput with the first unusable input, and TypeError for another type.
        """
        given = [self.preprocessor.to_input(each) for each in inputs]
        return predictions(self.info, self.run_all(self.prepare(given, truncate) if given else []))

    def run_all(self, items: Sequence[Item]) -> NDArray[np.float32]:
        """Return fp32 logits [len(items), C], and fill in those of tokens. Items run in batches, the shortest
        first."""
        logits = np.empty((len(items), len(self.info.labels)), dtype=np.float32)
        for rows in batches(items, max_batch_tokens(self.info), MAX_BATCH_ITEMS):
            batch = [items[row] for row in rows]
            logits[rows] = self.run(batch).fill(batch).logits
        return logits


def predictions(info: ModelInfo, logits: NDArray[np.float32]) -> Predictions:
    """Convert fp32 logits [N, C] of this model to predictions."""
    labels = [info.labels[best] for best in logits.argmax(axis=1)]
    return Predictions(labels, activate(logits, info.problem_type), logits)


@runtime_checkable
class CountsExperts(Protocol):
    """A model that may have experts."""

    def expert_counts(self) -> ExpertCounts | None:
        """Return routing counts since the model was loaded; None if it has no experts."""
        ...


@runtime_checkable
class Probeable(Protocol):
    """A model whose activations can be sampled while it runs."""

    def diagnose(self, share: float) -> None:
        """From now on, diagnose this share (0 to 1) of the items."""
        ...


@runtime_checkable
class Probed(Protocol):
    """A model that reports diagnoses."""

    def diagnosis(self) -> Diagnosis | None:
        """Return the diagnosis; None if no item was diagnosed."""
        ...


@runtime_checkable
class ChecksItself(Protocol):
    """A model with known answers to check itself with."""

    def self_check(self) -> None:
        """Compare its answers with the known ones. Raises an error with the worst difference."""
        ...


@runtime_checkable
class ReportsProblems(Protocol):
    """A model that may be temporarily unable to answer."""

    def problem(self) -> str:
        """Return why it cannot answer now; "" if it can. Called often, from any thread."""
        ...
