"""What the founding paper's Table II says of its five systems; the model table and the report of a load test
set it beside what was measured."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PaperRow:
    """A row of Table II, measured on hardware not ours.

    accuracy: in percent.
    f1: a share.
    parameters: how many.
    macs: what it calls FLOPs; at 25 tokens its 2.1e9 are the MACs of its encoder, not twice that.
    ms: its inference time in milliseconds.
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
"""By the name of our model in the system's place."""
