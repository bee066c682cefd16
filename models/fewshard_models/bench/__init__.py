"""The kernel benchmark: `moe_ffn` against its alternatives. Called by `fewshard bench`."""
