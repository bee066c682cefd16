"""Judges classifiers: accuracy and who pays for sparsity, robustness, time, and the paper's Table II."""
