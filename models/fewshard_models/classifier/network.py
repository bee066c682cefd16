"""A classifier whose network is in this process; the base of every class that runs a checkpoint."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from fewshard_core.values import Item, ModelInfo, ProblemType, Task
from fewshard_models.card import Card
from fewshard_models.checkpoint import Checkpoint, load_with_transformers
from fewshard_models.classifier.base import Classifier
from fewshard_models.classifier.golden import check_golden
from fewshard_models.devices import subnormals_flushed

MAX_EXAMPLES = 4
MAX_EXAMPLE_LENGTH = 8000
"""The card travels with every look at a model's state."""


class NetworkClassifier(Classifier):
    """Subclasses say how their network is loaded and run, and set `preprocessor`.

    task: what they classify.
    checkpoint: where the network was read.
    network: the network, in evaluation mode.
    device, dtype: those of its first parameter.
    """

    task: ClassVar[Task]

    def __init__(self, checkpoint: Checkpoint, info: ModelInfo) -> None:
        self.info = info
        self.checkpoint = checkpoint
        self.network: Any = checkpoint.model
        parameter = next(checkpoint.model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype

    @classmethod
    def accepts(cls, config: PreTrainedConfig) -> bool:
        """Whether this class runs a configuration of an architecture that it is registered for."""
        return True

    @classmethod
    def load_network(cls, directory: Path, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
        """Read the weights of a directory on the CPU. Raises CheckpointError where one is missing."""
        raise NotImplementedError(f"{cls.__name__} does not say how its network is loaded. This is a bug.")

    @classmethod
    def max_tokens(cls, config: PreTrainedConfig) -> int:
        """The most tokens of one input; 0 where the configuration does not say, or inputs are no texts."""
        return 0

    def run_all(self, items: Sequence[Item]) -> NDArray[np.float32]:
        """See `Classifier.run_all`; the CPU flushes subnormals meanwhile, as in the server."""
        with subnormals_flushed():
            return super().run_all(items)

    def self_check(self) -> None:
        """Compare the answers with the card's golden ones. Raises CheckpointError naming the worst."""
        check_golden(self, self.checkpoint.card)


class TextClassifier(NetworkClassifier):
    """A text classifier that transformers loads."""

    task = "text"

    @classmethod
    def load_network(cls, directory: Path, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
        """See `NetworkClassifier.load_network`."""
        return load_with_transformers(AutoModelForSequenceClassification, directory, config, dtype)

    @classmethod
    def max_tokens(cls, config: PreTrainedConfig) -> int:
        """As many as there are positions."""
        return int(getattr(config, "max_position_embeddings", 0))


def describe(
    name: str,
    kind: type[NetworkClassifier],
    config: PreTrainedConfig,
    card: Card | None,
    architecture: str,
    device: str,
    dtype: str,
) -> ModelInfo:
    """What a model is, from its checkpoint and what was chosen for it here.

    device: "cpu" or "cuda". dtype: its name in `core.formats`.
    """
    fields = {} if card is None else asdict(card)
    return ModelInfo(
        name=name,
        task=kind.task,
        kind=str(fields.get("kind", "moe" if _has_experts(config) else "dense")),
        labels=tuple(config.id2label[index] for index in sorted(config.id2label)),
        problem_type=_problem_type(config),
        architecture=architecture,
        dtype=dtype,
        device=torch.cuda.get_device_name() if device == "cuda" else device,
        max_tokens=kind.max_tokens(config),
        card=_told_of(fields),
    )


def _told_of(fields: dict[str, Any]) -> dict[str, Any]:
    """A card without its golden logits; of their inputs a few that are small, for whoever wants to try."""
    told = {key: value for key, value in fields.items() if key != "golden"}
    inputs = [golden["input"] for golden in fields.get("golden", ())]
    small = [given for given in inputs if isinstance(given, str) and len(given) <= MAX_EXAMPLE_LENGTH]
    return {**told, "examples": small[:MAX_EXAMPLES]} if small else told


def _problem_type(config: PreTrainedConfig) -> ProblemType:
    stated = config.problem_type
    return stated if stated in get_args(ProblemType) else "single_label_classification"


def _has_experts(config: PreTrainedConfig) -> bool:
    return any(
        getattr(config, field, 0) for field in ("num_experts", "num_local_experts", "n_routed_experts")
    )
