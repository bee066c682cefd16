"""Configuration of our residual CNN for small images, stored as a checkpoint's `config.json`."""

from collections.abc import Sequence

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

    def count_macs(self, num_tokens: int = 0) -> int:
        """MACs of one image of the configured size."""
        return self.count_macs_of_widths(self.stem_channels, self.stage_channels, self.block_channels)

    def count_macs_of_widths(
        self, stem: int, stage_channels: Sequence[int], block_channels: Sequence[int]
    ) -> int:
        """MACs of one image of the configured size, were the network of these widths."""
        size = self.image_size - 1
        macs: int = size**2 * self.num_channels * 4 * stem
        channels = stem
        for width, block_width in zip(stage_channels, block_channels, strict=True):
            macs += size**2 * 9 * channels * width
            size //= 2
            macs += size**2 * 9 * 2 * width * block_width
            channels = width
        return macs + channels * int(self.num_labels)

    def describe_input(self, num_tokens: int = 0) -> str:
        """The image whose MACs are counted."""
        return f"{self.image_size}x{self.image_size} image"
