"""Fewshard's ops: torch (and triton) only, no module state, no server.

`moe_ffn` is the one way an expert is multiplied in this project.
"""

from fewshard_kernels.moe_ffn import (
    ExpertWeights,
    LayerNormWeights,
    MoeOptions,
    MoeStats,
    PackedCache,
    PackedExperts,
    PathChoice,
    Routing,
    explain,
    force_path,
    moe_ffn,
    onednn_multiplies,
    pack_experts,
    rounded,
    route_groups,
)

__all__ = [
    "ExpertWeights",
    "LayerNormWeights",
    "MoeOptions",
    "MoeStats",
    "PackedCache",
    "PackedExperts",
    "PathChoice",
    "Routing",
    "explain",
    "force_path",
    "moe_ffn",
    "onednn_multiplies",
    "pack_experts",
    "rounded",
    "route_groups",
]
