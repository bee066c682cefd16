"""The Triton path of `moe_ffn`; importing it imports triton, so the facade does that late."""

from fewshard_kernels.moe_ffn.triton.launch import moe_ffn_triton, supports

__all__ = ["moe_ffn_triton", "supports"]
