"""The systems of the table: the paper's five with its figures, a masked twin, and narrow and 8-bit rivals.

Data only; `table` and `store` read it.
"""

from dataclasses import dataclass
from typing import Literal

from fewshard_core.paper import TABLE_II, PaperRow

Kind = Literal["dense", "moe", "dynamic", "static", "narrow", "int8"]


@dataclass(frozen=True, slots=True)
class System:
    """One system of the table.

    dense, narrow: the models it is compared with; None for those models themselves.
    paper: the paper's figures; None if it has none.
    """

    name: str
    title: str
    kind: Kind
    dense: str | None = None
    narrow: str | None = None
    paper: PaperRow | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """The promises made for a system of the small tier.

    accuracy: in percent.
    below_dense: points that it may be below the dense model.
    macs_share: share of the dense model's MACs.
    realised: R at a batch of 64.
    """

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
        System("sst2-dense", "dense Transformer", "dense", paper=TABLE_II["sst2-dense"]),
        System("sst2-moe", "Switch MoE, top-1", "moe", *_SST2, paper=TABLE_II["sst2-moe"]),
        System("sst2-narrow", "small dense rival", "narrow", "sst2-dense"),
        System("cifar10-dense", "dense CNN", "dense", paper=TABLE_II["cifar10-dense"]),
        System("cifar10-dst", "RigL, channels cut", "dynamic", *_CIFAR10, paper=TABLE_II["cifar10-dst"]),
        System("cifar10-dst-masked", "RigL, masked twin", "dynamic", *_CIFAR10),
        System("cifar10-static", "pruned", "static", *_CIFAR10, paper=TABLE_II["cifar10-static"]),
        System("cifar10-narrow", "small dense rival", "narrow", "cifar10-dense"),
        System("sst2-dense-int8", "dense, 8 bits", "int8", *_SST2),
        System("sst2-moe-int8", "Switch MoE, 8 bits", "int8", *_SST2),
        System("cifar10-dense-int8", "dense, 8 bits", "int8", *_CIFAR10),
        System("cifar10-dst-int8", "RigL, 8 bits", "int8", *_CIFAR10),
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
