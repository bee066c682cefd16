"""Evaluates classifiers: accuracy, effects of sparsity, robustness, time, and the paper's Table II."""
