"""The kernel benchmark: `moe_ffn` beside what a user would otherwise run. Called by `fewshard bench`."""
