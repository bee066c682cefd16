"""Fewshard's operators. They depend on torch (and triton) alone and know nothing of the server.

Every expert in this project is computed by `moe_ffn`. Module state is limited to caches of measurements and
to overrides for tests and tuning.
"""

from fewshard_kernels.int8 import Int8Product, Quantisation, quantised_weight, without_zero_point
from fewshard_kernels.moe_ffn import PathChoice, explain, force_path, moe_ffn
from fewshard_kernels.moe_ffn.batch_plan import rounded
from fewshard_kernels.moe_ffn.int8 import Int8Experts, PackedInt8Experts
from fewshard_kernels.moe_ffn.options import ExpertWeights, LayerNormWeights, MoeOptions, Routing
from fewshard_kernels.moe_ffn.packed import PackedCache, PackedExperts, pack_experts
from fewshard_kernels.moe_ffn.routing import MoeStats, route_groups, routing_stats
from fewshard_kernels.onednn import ONEDNN_ACTIVATIONS, onednn_multiplies

__all__ = [
    "ONEDNN_ACTIVATIONS",
    "ExpertWeights",
    "Int8Experts",
    "Int8Product",
    "LayerNormWeights",
    "MoeOptions",
    "MoeStats",
    "PackedCache",
    "PackedExperts",
    "PackedInt8Experts",
    "PathChoice",
    "Quantisation",
    "Routing",
    "explain",
    "force_path",
    "moe_ffn",
    "onednn_multiplies",
    "pack_experts",
    "quantised_weight",
    "rounded",
    "route_groups",
    "routing_stats",
    "without_zero_point",
]
