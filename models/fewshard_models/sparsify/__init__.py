"""Sparsifiers: masks, RigL, structured pruning, and removal of dead channels. Called by the recipes and by
`fewshard sparsify`."""
