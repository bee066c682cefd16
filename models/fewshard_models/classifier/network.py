"""A classifier whose network runs in this process: the base class of every class that runs a checkpoint."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from fewshard_core.values import ExpertCounts, Item, ModelInfo, Task
from fewshard_models.card import Card
from fewshard_models.checkpoint import Checkpoint, load_with_transformers
from fewshard_models.classifier.base import Classifier
from fewshard_models.classifier.golden import check_golden
from fewshard_models.classifier.limits import has_experts, stated_limit
from fewshard_models.classifier.probe import check_able
from fewshard_models.classifier.routing_totals import RoutingTotals
from fewshard_models.devices import subnormals_flushed

MAX_EXAMPLES = 4
MAX_EXAMPLE_LENGTH = 8000
"""The card is sent with every read of a model's state, so examples must be small."""


class NetworkClassifier(Classifier):
    """Subclasses load and run the network, and set `preprocessor`.

    task: the task they classify.
    can_compile: whether every call of the network goes through `forward`, so that it may be another engine's.
    can_overlap: whether several threads may call `run` at the same time.
    checkpoint: the source of the network.
    network: the network, in evaluation mode.
    forward: what is called for a pass: the network, or its compiled form.
    device: of the network's first parameter.
    dtype: of its first parameter of fractions.
    """

    task: ClassVar[Task]
    can_compile: ClassVar[bool] = False
    can_overlap: ClassVar[bool] = False

    def __init__(self, checkpoint: Checkpoint, info: ModelInfo) -> None:
        self.info = info
        self.checkpoint = checkpoint
        self.network: Any = checkpoint.model
        self.forward: Callable[..., Any] = checkpoint.model
        parameter = next(each for each in checkpoint.model.parameters() if each.is_floating_point())
        self.device, self.dtype = parameter.device, parameter.dtype

    @classmethod
    def accepts(cls, config: PreTrainedConfig) -> bool:
        """Return whether this class supports a configuration of an architecture it is registered for."""
        return True

    @classmethod
    @abstractmethod
    def load_network(cls, directory: Path, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
        """Load a directory's weights on the CPU. Raises CheckpointError if one is missing."""

    @classmethod
    def max_tokens(cls, config: PreTrainedConfig) -> int:
        """Return the most tokens of one input; 0 if unknown, or if inputs are not texts."""
        return 0

    def run_all(self, items: Sequence[Item]) -> NDArray[np.float32]:
        """See `Classifier.run_all`. The CPU flushes subnormals meanwhile, as in the server."""
        with subnormals_flushed():
            return super().run_all(items)

    def check_able(self) -> None:
        """Answer made-up inputs, alone and in one batch, as `load` does. Raises CheckpointError."""
        check_able(self.info, self.preprocessor, lambda items: self.run(items).logits, self.network)

    def self_check(self) -> None:
        """Compare with the card's golden answers. Raises CheckpointError with the worst difference."""
        check_golden(self, self.checkpoint.card)


class TextClassifier(NetworkClassifier):
    """A text classifier that transformers loads.

    routing: which experts its tokens went to; None without experts.
    """

    task = "text"
    routing: RoutingTotals | None = None

    @classmethod
    def load_network(cls, directory: Path, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
        """See `NetworkClassifier.load_network`."""
        return load_with_transformers(AutoModelForSequenceClassification, directory, config, dtype)

    @classmethod
    def max_tokens(cls, config: PreTrainedConfig) -> int:
        """Return the number of positions."""
        return stated_limit(config)

    def expert_counts(self) -> ExpertCounts | None:
        """Return counts since loading, without its checks; None for a dense model."""
        return None if self.routing is None else self.routing.copy()

    def check_able(self) -> None:
        """See `NetworkClassifier.check_able`; it is not counted as routing."""
        super().check_able()
        self._forget_routing()

    def self_check(self) -> None:
        """See `NetworkClassifier.self_check`; it is not counted as routing."""
        super().self_check()
        self._forget_routing()

    def _forget_routing(self) -> None:
        if self.routing is not None:
            self.routing.clear()


def describe(
    name: str,
    kind: type[NetworkClassifier],
    config: PreTrainedConfig,
    card: Card | None,
    architecture: str,
    device: str,
    dtype: str,
) -> ModelInfo:
    """Return the description of a model, from its checkpoint and the choices made here.

    device: "cpu" or "cuda".
    dtype: its name in `core.formats`.
    """
    fields = {} if card is None else asdict(card)
    return ModelInfo(
        name=name,
        task=kind.task,
        kind=str(fields.get("kind", "moe" if has_experts(config) else "dense")),
        labels=tuple(config.id2label[index] for index in sorted(config.id2label)),
        problem_type=config.problem_type or "single_label_classification",
        architecture=architecture,
        dtype=dtype,
        device=torch.cuda.get_device_name() if device == "cuda" else device,
        max_tokens=kind.max_tokens(config),
        card=_public_card(fields),
    )


def _public_card(fields: dict[str, Any]) -> dict[str, Any]:
    """Return a card for the API: without golden logits, with a few small golden inputs as examples."""
    public = {key: value for key, value in fields.items() if key != "golden"}
    inputs = [golden["input"] for golden in fields.get("golden", ())]
    small = [given for given in inputs if isinstance(given, str) and len(given) <= MAX_EXAMPLE_LENGTH]
    return {**public, "examples": small[:MAX_EXAMPLES]} if small else public
