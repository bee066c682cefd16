"""Our residual CNN for 32x32 images, as a transformers image classifier."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from fewshard_models.fused import Fusable
from fewshard_models.image.configuration import FewshardImageConfig
from fewshard_models.image.convolution import Conv3x3, FusedConv, can_fuse, padded_batch
from fewshard_models.image.int8 import Int8Stages
from fewshard_models.losses import classification_loss


class Stem(nn.Conv2d, Fusable[FusedConv]):
    """2x2 convolution and GELU: [N, C, S, S] to [N, O, S - 1, S - 1]."""

    def forward(self, x: Tensor) -> Tensor:
        if (fused := self.usable) is not None:
            return fused(x)
        return F.gelu(super().forward(x))

    def fuse(self) -> None:
        if can_fuse(self):
            self.fused = FusedConv(self, None, pool=False)


class ConvNorm(Fusable[FusedConv]):
    """3x3 convolution, optional 2x2 max-pooling, batch norm, GELU."""

    def __init__(self, config: FewshardImageConfig, channels_in: int, channels_out: int, pool: bool) -> None:
        super().__init__()
        self.conv = Conv3x3(channels_in, channels_out)
        self.norm = nn.BatchNorm2d(channels_out, config.batch_norm_eps, config.batch_norm_momentum)
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        if (fused := self.usable) is not None:
            return fused(x)
        x = self.conv(x)
        if self.pool:
            x = F.max_pool2d(x, 2)
        return F.gelu(self.norm(x))

    def fuse(self) -> None:
        """Fuse, unless a pooled channel has a negative norm weight: that does not commute with pooling."""
        if can_fuse(self.conv) and not (self.pool and bool((self.norm.weight < 0).any())):
            self.fused = FusedConv(self.conv, self.norm, self.pool)


class Stage(nn.Module):
    """Widen and halve the resolution, then one residual block of two convolutions."""

    def __init__(self, config: FewshardImageConfig, channels_in: int, width: int, block_width: int) -> None:
        super().__init__()
        self.down = ConvNorm(config, channels_in, width, pool=True)
        self.block = nn.Sequential(
            ConvNorm(config, width, block_width, pool=False), ConvNorm(config, block_width, width, pool=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        out: Tensor = x + self.block(x)
        return out

    def fuse(self) -> None:
        self.down.fuse()
        for layer in self.block:
            assert isinstance(layer, ConvNorm)
            layer.fuse()


class FewshardImageForImageClassification(PreTrainedModel):
    """Classifies normalised images [N, 3, S, S]."""

    config_class = FewshardImageConfig
    main_input_name = "pixel_values"
    base_model_prefix = ""
    _keep_in_fp32_modules_strict = ["classifier"]  # noqa: RUF012

    def __init__(self, config: FewshardImageConfig) -> None:
        super().__init__(config)
        self.stem = Stem(config.num_channels, config.stem_channels, 2)
        widths = [config.stem_channels, *config.stage_channels]
        self.stages = nn.Sequential(
            *(
                Stage(config, channels_in, width, block_width)
                for channels_in, width, block_width in zip(
                    widths, widths[1:], config.block_channels, strict=False
                )
            )
        )
        self.classifier = nn.Linear(widths[-1], config.num_labels, bias=False)
        self.int8: Int8Stages | None = None
        self.post_init()

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None, **_: Any) -> ImageClassifierOutput:
        """Returns fp32 logits [N, num_labels] and, given int64 `labels` [N], the mean cross-entropy."""
        num_images = len(pixel_values)
        is_compiled = self.stem.usable is not None or self.int8 is not None
        num_spare = padded_batch(num_images) - num_images if is_compiled else 0
        if num_spare:
            pixel_values = F.pad(pixel_values, (0, 0, 0, 0, 0, 0, 0, num_spare))
        hidden = self.int8(pixel_values) if self.int8 else self.stages(self.stem(pixel_values))
        hidden = hidden[:num_images]
        pooled = hidden.amax(dim=(2, 3)).float()
        with torch.autocast(pooled.device.type, enabled=False):
            logits = self.classifier(pooled) * self.config.logit_scale
        loss = None if labels is None else classification_loss(logits, labels, self.config)
        return ImageClassifierOutput(loss=loss, logits=logits)

    def prepare_for_inference(self) -> None:
        """Switch to eval mode and, on a CPU, fuse each convolution with its norm and GELU.

        Call it after the model is loaded, cast and moved.
        """
        self.eval()
        if self.int8 is not None:
            return
        self.stem.fuse()
        for stage in self.stages:
            assert isinstance(stage, Stage)
            stage.fuse()
