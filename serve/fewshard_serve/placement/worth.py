"""Shard or copy: what expert layers take, from bytes and bandwidths; docs/scale.md has the formula."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fewshard_models.sharding import Placement

Loads = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Machine:
    """What one GPU and its links do; the defaults are an H200's, from data sheets but for what is assumed.

    memory_gb_s: bytes read, in 1e9 a second. link_gb_s: to GPUs of the same node, each way (NVLink 4).
    network_gb_s: to other nodes, each way and for each GPU (InfiniBand 400 Gb/s). memory_gb: what one GPU
    holds. latency_us, assumed: one stage of a collective without any bytes. compute_tflops, assumed: what
    products of experts reach in bf16, of the data sheet's 989.
    """

    memory_gb_s: float = 4800.0
    link_gb_s: float = 450.0
    network_gb_s: float = 50.0
    latency_us: float = 20.0
    compute_tflops: float = 600.0
    memory_gb: float = 141.0


@dataclass(frozen=True, slots=True)
class ExpertShape:
    """An expert has `matrices` (3 where gated) of hidden x intermediate; `tokens` are a batch on one GPU."""

    hidden: int = 1024
    intermediate: int = 4096
    matrices: int = 2
    bytes_per_weight: float = 2.0
    top_k: int = 2
    tokens: int = 1024

    @property
    def expert_bytes(self) -> float:
        return self.matrices * self.hidden * self.intermediate * self.bytes_per_weight

    @property
    def flops_per_row(self) -> float:
        return 2.0 * self.matrices * self.hidden * self.intermediate


@dataclass(frozen=True, slots=True)
class Verdict:
    """Seconds of all expert layers for a batch of `tokens` on every GPU.

    `collectives_s` is part of `shard_s`; bytes are what one GPU holds of experts.
    """

    shard_s: float
    copy_s: float
    collectives_s: float
    shard_bytes: float
    copy_bytes: float
    fits_as_copy: bool

    @property
    def shard(self) -> bool:
        """Whether to shard: where a copy does not fit, or takes longer."""
        return not self.fits_as_copy or self.shard_s < self.copy_s

    @property
    def reason(self) -> str:
        if not self.fits_as_copy:
            return f"shard: {self.copy_bytes / 1e9:.3g} GB of experts do not fit on one GPU"
        faster = self.copy_s / self.shard_s if self.shard else self.shard_s / self.copy_s
        if self.shard:
            return f"shard: the weights not read save more than the collectives cost ({faster:.2f}x faster)"
        return f"copy the whole model: sharding would take {faster:.2f}x as long"


def shard_or_copy(
    loads: Loads, placement: Placement, nodes: int, shape: ExpertShape, machine: Machine
) -> Verdict:
    """Both times for as many GPUs as shards, each with a batch of `shape.tokens` tokens of its own.

    Copied, a GPU reads every expert that its own rows hit. Sharded, it reads those of its slots that the rows
    of all GPUs hit, does its placed share of all rows, and takes part in two collectives a layer.
    """
    share = loads / loads.sum(axis=1, keepdims=True)
    rows = shape.tokens * shape.top_k
    alone = Placement(np.repeat(np.arange(loads.shape[1])[None, None], len(loads), 0), loads.shape[1])
    collectives_s = 2 * len(loads) * collective_s(placement.num_shards, nodes, shape, machine)
    all_rows = rows * placement.num_shards
    work_s = _layers_s(share, placement, all_rows, shape, machine)
    copy_bytes = loads.size * shape.expert_bytes
    return Verdict(
        shard_s=work_s + collectives_s,
        copy_s=_layers_s(share, alone, rows, shape, machine),
        collectives_s=collectives_s,
        shard_bytes=len(loads) * placement.slots_per_shard * shape.expert_bytes,
        copy_bytes=copy_bytes,
        fits_as_copy=copy_bytes <= machine.memory_gb * 1e9,
    )


def collective_s(num_shards: int, nodes: int, shape: ExpertShape, machine: Machine) -> float:
    """One all-gather of every shard's tokens (or the reduce-scatter back).

    A shard's block crosses the network once to its like on every other node, and the rest of the way inside
    the node: latency for each of the two stages, (nodes - 1) blocks by network, (shards - nodes) by link.
    """
    block = shape.tokens * shape.hidden * shape.bytes_per_weight
    stages = (nodes > 1) + (num_shards > nodes)
    network_s = (nodes - 1) * block / (machine.network_gb_s * 1e9)
    link_s = (num_shards - nodes) * block / (machine.link_gb_s * 1e9)
    return stages * machine.latency_us * 1e-6 + network_s + link_s


def _layers_s(share: Loads, placement: Placement, rows: int, shape: ExpertShape, machine: Machine) -> float:
    """The sum over layers of the slowest shard: reading its hit experts or multiplying, if longer."""
    piece = np.pad(share / placement.copies(), ((0, 0), (0, 1)))
    slot_rows = np.take_along_axis(piece[:, None], placement.slots, axis=2) * rows
    # Rows fall on experts independently of one another: a slot is hit by at least one with 1 - e^-rows.
    hit = -np.expm1(-slot_rows)
    read_s = hit.sum(axis=2) * shape.expert_bytes / (machine.memory_gb_s * 1e9)
    work_s = slot_rows.sum(axis=2) * shape.flops_per_row / (machine.compute_tflops * 1e12)
    return float(np.maximum(read_s, work_s).max(axis=1).sum())
