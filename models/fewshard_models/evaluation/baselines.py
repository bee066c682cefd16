"""The systems of the table: the paper's five with its figures, a masked twin, and the narrow dense rivals.

Data only; `judge.table` and `judge.verdicts` read it.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["dense", "moe", "dynamic", "static", "narrow"]


@dataclass(frozen=True, slots=True)
class Paper:
    """A row of the paper's Table II. `macs`: what it calls FLOPs; at 25 tokens its 2.1e9 are the MACs of its
    encoder, not twice that. `accuracy` in percent."""

    accuracy: float
    f1: float
    parameters: float
    macs: float
    ms: float


@dataclass(frozen=True, slots=True)
class System:
    """`dense` and `narrow`: the models that it is compared with, None for those themselves."""

    name: str
    title: str
    kind: Kind
    dense: str | None = None
    narrow: str | None = None
    paper: Paper | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """Promised of a system of the small tier. `accuracy` in percent, or `below_dense` in points;
    `macs_share`: of the dense model's; `realised`: R at a batch of 64."""

    system: str
    accuracy: float | None = None
    below_dense: float | None = None
    macs_share: float | None = None
    realised: float | None = None


_SST2 = ("sst2-dense", "sst2-narrow")
_CIFAR10 = ("cifar10-dense", "cifar10-narrow")

SYSTEMS = {
    system.name: system
    for system in (
        System("sst2-dense", "dense Transformer", "dense", paper=Paper(91.4, 0.914, 110e6, 2.1e9, 120)),
        System("sst2-moe", "Switch MoE, top-1", "moe", *_SST2, Paper(91.2, 0.910, 490e6, 0.9e9, 61)),
        System("sst2-narrow", "small dense rival", "narrow", "sst2-dense"),
        System("cifar10-dense", "dense CNN", "dense", paper=Paper(94.2, 0.941, 12e6, 1.3e9, 58)),
        System("cifar10-dst", "RigL, channels cut", "dynamic", *_CIFAR10, Paper(93.8, 0.936, 3e6, 5.2e8, 34)),
        System("cifar10-dst-masked", "RigL, masked twin", "dynamic", *_CIFAR10),
        System("cifar10-static", "pruned", "static", *_CIFAR10, Paper(92.8, 0.929, 7e6, 9.8e8, 39)),
        System("cifar10-narrow", "small dense rival", "narrow", "cifar10-dense"),
    )
}

TARGETS = (
    Target("sst2-dense", accuracy=91.0),
    Target("sst2-moe", below_dense=0.5, macs_share=0.45, realised=0.8),
    Target("cifar10-dense", accuracy=94.2),
    Target("cifar10-dst", accuracy=93.8, macs_share=0.40, realised=0.8),
    Target("cifar10-static", accuracy=93.5, macs_share=0.50, realised=0.9),
)
TARGET_BATCH = 64
