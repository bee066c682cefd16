"""Parameters and multiply-accumulates (MACs), counted from the architecture; FLOPs are twice the MACs.

The formulas are written out because torch's FlopCounterMode counts neither CPU attention nor grouped
products. A test compares the two where it counts correctly.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from transformers import PreTrainedConfig, PreTrainedModel

STATED_TOKENS = 25
"""Text MACs are stated for the mean length of an SST-2 dev sentence in WordPiece tokens."""


@runtime_checkable
class CountsMacs(Protocol):
    """A configuration whose architecture's MACs are known."""

    def count_macs(self, num_tokens: int) -> int:
        """MACs of one item; `num_tokens`: of a text."""
        ...

    def describe_input(self, num_tokens: int) -> str:
        """That item, in words."""
        ...


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Number of parameters.

    total: all parameters.
    active: those that one item can use at once (in each MoE layer, `top_k` experts and the router).
    """

    total: int
    active: int


def count_parameters(model: PreTrainedModel) -> ParameterCount:
    total = sum(parameter.numel() for parameter in model.parameters())
    idle_share = 0.0
    if getattr(model.config, "num_experts", 0):
        idle_share = 1 - model.config.num_experts_per_tok / model.config.num_experts
    experts = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if name.rsplit(".", 1)[-1] in ("w1", "b1", "w2", "b2")
    )
    return ParameterCount(total, total - round(experts * idle_share))


def count_macs(config: PreTrainedConfig, num_tokens: int = STATED_TOKENS) -> int:
    """MACs of one item: a text of `num_tokens` tokens, or one image of the configured size.

    Raises ValueError for an architecture whose configuration does not count them.
    """
    return _counting(config).count_macs(num_tokens)


def macs_input(config: PreTrainedConfig) -> str:
    """The input of which `count_macs` counts the MACs, in words."""
    return _counting(config).describe_input(STATED_TOKENS)


def _counting(config: PreTrainedConfig) -> CountsMacs:
    if not isinstance(config, CountsMacs):
        raise ValueError(f"MACs are counted for Fewshard's own architectures, not for {config.model_type!r}")
    return config
