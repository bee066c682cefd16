"""Table II of the founding paper: the figures of its five systems.

The model table and the report of a load test show them beside our own measurements.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PaperRow:
    """A row of Table II, measured on the paper's hardware.

    accuracy: in percent.
    f1: from 0 to 1.
    parameters: their number.
    macs: what the paper calls FLOPs. Its 2.1e9 equal the MACs of its encoder at 25 tokens, not twice that.
    ms: inference time in milliseconds.
    """

    accuracy: float
    f1: float
    parameters: float
    macs: float
    ms: float


TABLE_II = {
    "sst2-dense": PaperRow(91.4, 0.914, 110e6, 2.1e9, 120),
    "sst2-moe": PaperRow(91.2, 0.910, 490e6, 0.9e9, 61),
    "cifar10-dense": PaperRow(94.2, 0.941, 12e6, 1.3e9, 58),
    "cifar10-dst": PaperRow(93.8, 0.936, 3e6, 5.2e8, 34),
    "cifar10-static": PaperRow(92.8, 0.929, 7e6, 9.8e8, 39),
}
"""Rows by the name of our corresponding model."""
