"""The Triton path of `moe_ffn`. It imports triton, so `moe_ffn` imports this package only when needed."""

from fewshard_kernels.moe_ffn.triton.launch import moe_ffn_triton, supports

__all__ = ["moe_ffn_triton", "supports"]
