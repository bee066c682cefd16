"""Quantised checkpoints: reading those of others and our own (`reading`), and our 8-bit networks.

`calibration` chooses codes, `coding` turns a network into an 8-bit one and back into files.
"""

from fewshard_models.quantised.reading import OWN_METHOD, dequantised, own_format, quantisation_of

__all__ = ["OWN_METHOD", "dequantised", "own_format", "quantisation_of"]
