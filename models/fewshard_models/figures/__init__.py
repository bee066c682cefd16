"""Figures of results: accuracy against MACs, times of CNNs, sparsity patterns, training curves."""
