"""Fewshard's ops: torch (and triton) only, no module state, no server.

`moe_ffn` is the one way an expert is multiplied in this project.
"""

from fewshard_kernels.moe_ffn import PathChoice, explain, force_path, moe_ffn
from fewshard_kernels.moe_ffn.batch_plan import rounded
from fewshard_kernels.moe_ffn.layouts import ONEDNN_ACTIVATIONS, onednn_multiplies
from fewshard_kernels.moe_ffn.options import ExpertWeights, LayerNormWeights, MoeOptions, Routing
from fewshard_kernels.moe_ffn.packed import PackedCache, PackedExperts, pack_experts
from fewshard_kernels.moe_ffn.routing import MoeStats, route_groups

__all__ = [
    "ONEDNN_ACTIVATIONS",
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
