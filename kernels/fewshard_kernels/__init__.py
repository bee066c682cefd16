"""Fewshard's operators. They depend on torch (and triton) alone and know nothing of the server.

Every expert in this project is computed by `moe_ffn`. Module state is limited to caches of measurements and
to overrides for tests and tuning.
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
