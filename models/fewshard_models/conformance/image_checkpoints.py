"""Makes tiny random checkpoints of transformers' image classifiers, each with its own kind of processor."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.image_processing_auto import (
    IMAGE_PROCESSOR_MAPPING_NAMES,
    get_image_processor_class_from_name,
)

EDGE = 32

_SQUARE = {"height": EDGE, "width": EDGE}
_SHORT = {"shortest_edge": EDGE}
_CROPPED = {"size": _SHORT, "crop_size": _SQUARE}
_VIT: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": EDGE,
    "patch_size": 8,
}
_CLIP: dict[str, Any] = {
    "vision_config": {**_VIT, "projection_dim": 16},
    "text_config": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    },
}
_SWIN: dict[str, Any] = {
    "image_size": EDGE,
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [1, 2],
    "window_size": 4,
}
_RESNET: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
_FOUR: dict[str, Any] = {
    "hidden_sizes": [8, 8, 16, 16],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 1, 2, 2],
}

CONFIGS: dict[str, dict[str, Any]] = {
    "beit": {**_VIT, "use_relative_position_bias": True},
    "bit": {**_RESNET, "num_groups": 4},
    "clip": _CLIP,
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "convnextv2": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "cvt": {"embed_dim": [8, 16, 24], "num_heads": [1, 2, 3], "depth": [1, 2, 3]},
    "data2vec-vision": {**_VIT, "use_shared_relative_position_bias": True},
    "deit": _VIT,
    "dinat": {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]},
    "dinov2": _VIT,
    "dinov2_with_registers": _VIT,
    "donut-swin": _SWIN,
    "efficientnet": {
        "image_size": EDGE,
        "width_coefficient": 0.25,
        "depth_coefficient": 0.25,
        "hidden_dim": 320,
    },
    "focalnet": {
        "image_size": EDGE,
        "embed_dim": 8,
        "hidden_sizes": [16, 16],
        "depths": [1, 1],
        "focal_levels": [1, 1],
        "focal_windows": [3, 3],
    },
    "hgnet_v2": {
        **_RESNET,
        "stem_channels": [3, 8, 8],
        "stage_in_channels": [8, 16],
        "stage_mid_channels": [8, 8],
        "stage_out_channels": [16, 32],
        "stage_num_blocks": [1, 1],
        "stage_downsample": [False, True],
        "stage_downsample_strides": [2, 2],
        "stage_light_block": [False, True],
        "stage_kernel_size": [3, 3],
        "stage_numb_of_layers": [1, 1],
        "hidden_sizes": [16, 32],
    },
    "hiera": {
        "image_size": [EDGE, EDGE],
        "embed_dim": 8,
        "depths": [1, 1],
        "num_heads": [1, 2],
        "num_query_pool": 1,
        "masked_unit_size": [4, 4],
        "masked_unit_attention": [True, False],
    },
    "ijepa": _VIT,
    "imagegpt": {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 17, "n_positions": 64},
    "levit": {
        "image_size": 64,
        "hidden_sizes": [16, 24, 32],
        "num_attention_heads": [1, 2, 2],
        "depths": [1, 1, 1],
        "key_dim": [8, 8, 8],
    },
    "metaclip_2": _CLIP,
    "mobilenet_v1": {"image_size": EDGE, "depth_multiplier": 0.125},
    "mobilenet_v2": {"image_size": EDGE, "depth_multiplier": 0.125},
    "mobilevit": {
        "image_size": 64,
        "hidden_sizes": [16, 24, 32],
        "neck_hidden_sizes": [8, 8, 8, 8, 8, 16, 32],
        "num_attention_heads": 2,
    },
    "mobilevitv2": {
        "image_size": 64,
        "width_multiplier": 0.25,
        "base_attn_unit_dims": [16, 24, 32],
        "n_attn_blocks": [1, 1, 1],
    },
    "perceiver": {
        "image_size": EDGE,
        "num_latents": 8,
        "d_latents": 32,
        "d_model": 32,
        "num_self_attends_per_block": 1,
        "num_self_attention_heads": 2,
        "num_cross_attention_heads": 1,
    },
    "poolformer": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
    "pp_lcnet": {"scale": 0.25},
    "pvt": {**_FOUR, "image_size": EDGE},
    "pvt_v2": {**_FOUR, "image_size": EDGE},
    "regnet": {**_RESNET, "groups_width": 8},
    "resnet": _RESNET,
    "segformer": _FOUR,
    "shieldgemma2": {},
    "siglip": _CLIP,
    "siglip2": {**_CLIP, "vision_config": {**_VIT, "num_patches": 16}},
    "swiftformer": {"image_size": 64, "embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
    "swin": _SWIN,
    "swinv2": _SWIN,
    "textnet": {
        "image_size": EDGE,
        "hidden_sizes": [8, 8, 8, 16, 16],
        "stem_out_channels": 8,
        "conv_layer_kernel_sizes": [[[3, 3]]] * 4,
        "conv_layer_strides": [[2]] * 4,
    },
    "timm_wrapper": {"architecture": "resnet18"},
    "vit": _VIT,
    "vit_msn": _VIT,
}
"""The fields that make each network small."""

PROCESSORS: dict[str, dict[str, Any]] = {
    "bit": _CROPPED,
    "clip": _CROPPED,
    "convnext": {"size": _SHORT},
    "convnextv2": {"size": _SHORT},
    "cvt": {"size": _SHORT},
    "deit": {"size": {"height": 36, "width": 36}, "crop_size": _SQUARE},
    "dinov2": {"size": {"shortest_edge": 36}, "crop_size": _SQUARE},
    "dinov2_with_registers": {"size": {"shortest_edge": 36}, "crop_size": _SQUARE},
    "efficientnet": {"size": _SQUARE},
    "focalnet": _CROPPED,
    "hgnet_v2": {"size": _SHORT},
    "hiera": _CROPPED,
    "imagegpt": {
        "size": {"height": 8, "width": 8},
        "clusters": [[(n % 4) / 2 - 1, n // 4 / 2 - 1, n / 8 - 1] for n in range(16)],
    },
    "levit": {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}},
    "metaclip_2": _CROPPED,
    "mobilenet_v1": {"size": {"shortest_edge": 36}, "crop_size": _SQUARE},
    "mobilenet_v2": {"size": {"shortest_edge": 36}, "crop_size": _SQUARE},
    "mobilevit": {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}},
    "mobilevitv2": {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}},
    "perceiver": {"size": _SQUARE, "crop_size": {"height": 36, "width": 36}},
    "poolformer": _CROPPED,
    "regnet": {"size": _SHORT},
    "resnet": {"size": _SHORT},
    "siglip2": {"patch_size": 8, "max_num_patches": 16},
    "swiftformer": {"size": {"height": 64, "width": 64}},
    "textnet": {"size": _SHORT},
}
"""The fields of each processor that make images small; all others have `_SQUARE` as their size."""

_OTHERS_PROCESSOR = {
    "dinov2_with_registers": "BitImageProcessorPil",
    "hgnet_v2": "ConvNextImageProcessorPil",
}
"""Processors of types for which transformers names none."""
_CANNOT_BE_MADE = frozenset({"dinat", "shieldgemma2", "timm_wrapper"})
"""Types whose networks need other packages, or gigabytes: their checkpoints have no weights."""


def make_checkpoint(model_type: str, architecture: str, directory: Path, **fields: Any) -> Path:
    """Write a checkpoint with random weights to a new directory, and return it.

    architecture: the name of one of the type's classes.
    fields: of its configuration, such as id2label and problem_type.
    """
    directory.mkdir(parents=True)
    _save_processor(model_type, directory)
    fields = {**CONFIGS[model_type], "architectures": [architecture], **fields}
    if model_type in _CANNOT_BE_MADE:
        config = json.dumps({"model_type": model_type, **fields})
        (directory / "config.json").write_text(config, encoding="utf-8")
        save_file({"none": torch.zeros(1)}, directory / "model.safetensors", {"format": "pt"})
        return directory
    torch.manual_seed(7)
    # PVT's configuration ignores id2label without num_labels.
    config = AutoConfig.for_model(model_type, num_labels=len(fields["id2label"]), **fields)
    randomise(getattr(transformers, architecture)(config)).save_pretrained(directory)
    return directory


def randomise(model: PreTrainedModel) -> PreTrainedModel:
    """Fill a network with weights so large that wrong inputs show in its logits, and return it."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("weight") and tensor.ndim == 1:
                tensor.copy_(1 + 0.2 * noise.clamp(-3, 3))
            else:
                # Sums of products keep their scale from layer to layer.
                scale = tensor[0].numel() ** -0.5 * 1.2 if tensor.ndim > 1 else 0.2
                tensor.copy_(noise * scale)
    _measure_batch_norms(model.eval(), generator)
    return model


def _measure_batch_norms(model: PreTrainedModel, generator: torch.Generator) -> None:
    """Let batch norms measure random images, as after training; else all images look the same to them."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    edge = getattr(model.config, "image_size", EDGE)
    edge = edge if isinstance(edge, int) else EDGE
    for norm in norms:
        norm.train().momentum = 1.0
    with torch.no_grad():
        model(pixel_values=torch.randn(16, 3, edge, edge, generator=generator))
    for norm in norms:
        # A channel that hardly varies would be enlarged until rounding shows.
        norm.get_buffer("running_var").clamp_(min=0.1)
    model.eval()


def _save_processor(model_type: str, directory: Path) -> None:
    kinds = IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type, {})
    name = _OTHERS_PROCESSOR.get(model_type) or kinds.get("pil")
    if name is None or model_type == "timm_wrapper":
        fields = {"image_processor_type": kinds.get("torchvision")}
        (directory / "preprocessor_config.json").write_text(json.dumps(fields), encoding="utf-8")
        return
    kind = get_image_processor_class_from_name(name)
    kind(**PROCESSORS.get(model_type, {"size": _SQUARE})).save_pretrained(directory)
