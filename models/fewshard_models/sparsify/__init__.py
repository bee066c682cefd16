"""Sparsifiers: masks, RigL, structured pruning, and export by cutting what is dead. Called by the recipes and
by `fewshard sparsify`."""
