"""Configuration of our residual CNN for small images, stored as a checkpoint's `config.json`."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class FewshardImageConfig(PreTrainedConfig):
    """A whitening stem, then stages of one widening convolution and one residual block each.

    stage_channels: width of each stage's residual stream.
    block_channels: width inside each stage's residual block. Pruned networks are rebuilt from both.
    logit_scale: factor on the logits.
    sparsity_kind: "static" or "dynamic" if a sparsifier made the network.
    """

    model_type = "fewshard_image"

    image_size: int = 32
    num_channels: int = 3
    stem_channels: int = 24
    stage_channels: list[int] | tuple[int, ...] = (64, 192, 256)
    block_channels: list[int] | tuple[int, ...] = (64, 128, 128)
    batch_norm_eps: float = 1e-5
    batch_norm_momentum: float = 0.4
    logit_scale: float = 0.125
    sparsity_kind: str | None = None
