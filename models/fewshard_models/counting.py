"""Parameters and multiply-accumulates (MACs), counted from the architecture; FLOPs are twice the MACs.

The formulas are written out because torch's FlopCounterMode counts neither CPU attention nor grouped
products. A test compares the two where it counts correctly.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig, PreTrainedModel

from fewshard_models.image import FewshardImageConfig
from fewshard_models.text import FewshardTextConfig

STATED_TOKENS = 25
"""Text MACs are stated for the mean length of an SST-2 dev sentence in WordPiece tokens."""


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

    Raises ValueError for an architecture that is not ours.
    """
    if isinstance(config, FewshardTextConfig):
        return _text_macs(config, num_tokens)
    if isinstance(config, FewshardImageConfig):
        return _image_macs(config)
    raise ValueError(f"MACs are counted for Fewshard's own architectures, not for {config.model_type!r}")


def macs_input(config: PreTrainedConfig) -> str:
    """The input for which `count_macs` counts, as text."""
    if isinstance(config, FewshardTextConfig):
        return f"{STATED_TOKENS} tokens"
    return f"{config.image_size}x{config.image_size} image"


def _text_macs(config: FewshardTextConfig, num_tokens: int) -> int:
    hidden, heads = config.hidden_size, config.attention_size
    projections = 4 * hidden * heads
    attention = 2 * num_tokens * heads
    num_moe = len(config.expert_layers)
    units = (config.num_hidden_layers - num_moe) * config.intermediate_size
    units += num_moe * config.num_experts_per_tok * config.expert_size
    router = num_moe * hidden * config.num_experts
    per_token = config.num_hidden_layers * (projections + attention) + 2 * hidden * units
    if config.embedding_size not in (None, hidden):
        per_token += config.embedding_size * hidden
    per_item: int = (hidden * hidden if config.pooler_act else 0) + hidden * config.num_labels
    per_item += router * (1 if config.routing == "request" else num_tokens)
    total: int = num_tokens * per_token + per_item
    return total


def _image_macs(config: FewshardImageConfig) -> int:
    return image_macs(config, config.stem_channels, config.stage_channels, config.block_channels)


def image_macs(
    config: FewshardImageConfig, stem: int, stage_channels: Sequence[int], block_channels: Sequence[int]
) -> int:
    """MACs of one image of the configured size for a network of these widths."""
    size = config.image_size - 1
    macs: int = size**2 * config.num_channels * 4 * stem
    channels = stem
    for width, block_width in zip(stage_channels, block_channels, strict=True):
        macs += size**2 * 9 * channels * width
        size //= 2
        macs += size**2 * 9 * 2 * width * block_width
        channels = width
    return macs + channels * int(config.num_labels)
