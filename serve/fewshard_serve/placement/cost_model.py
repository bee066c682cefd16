"""Lower bounds for placements, and the estimated times of sharding experts against copying the model.

`fewshard plan` calls it. The bounds are for the heaviest shard's load and for the number of moves. They
assume that the copies of an expert share its load equally and are on different shards. docs/scale.md has the
formula for the times, which come from bytes and bandwidths.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fewshard_models.sharding import Placement
from fewshard_models.sharding.placement import EMPTY
from fewshard_serve.placement.machine import ExpertShape, Machine

Loads = NDArray[np.float64]
Slots = NDArray[np.int32]


def heaviest_bound(loads: Loads, num_shards: int, slots_per_shard: int) -> float:
    """Return a load that some shard reaches in every placement of one layer's `loads` [num_experts].

    The larger of two bounds, with R = shards x slots - experts spare slots:
    1. Pieces. R further copies can do no better than always splitting the largest piece. Whichever piece is
    then the largest is on some shard.
    2. Companions. Take the m heaviest experts H, and the d shards that hold a piece of one; d is at most m +
    R and at most all shards. Their d x slots slots hold all of H. Each other slot of theirs is empty, or
    holds a further copy or the last piece of some expert: k of these slots hold at least k - (R minus the
    further copies of H) experts wholly. So the d shards bear at least H and the (d x slots - R - m) lightest
    experts beside H. The heaviest of them bears at least the mean of that, for the best d. With m = all
    experts it is the mean load of all shards.
    """
    return max(
        _largest_piece(loads, num_shards, slots_per_shard), _companions(loads, num_shards, slots_per_shard)
    )


def _largest_piece(loads: Loads, num_shards: int, slots_per_shard: int) -> float:
    """Bisect for the least T at which ceil(load / T) copies of all experts fit. Returns slightly less."""
    num_slots = num_shards * slots_per_shard
    low, high = float(loads.max()) / num_shards, float(loads.max())
    if _copies_needed(loads, low) <= num_slots:
        return low
    for _ in range(60):
        middle = (low + high) / 2
        if _copies_needed(loads, middle) <= num_slots:
            high = middle
        else:
            low = middle
    return low


def _copies_needed(loads: Loads, most: float) -> float:
    # Tolerate one part in 1e9, so that rounding does not require a copy that exact arithmetic does not.
    return float(np.maximum(np.ceil(loads / max(most, 1e-300) * (1 - 1e-9)), 1).sum())


def _companions(loads: Loads, num_shards: int, slots_per_shard: int) -> float:
    num_experts = len(loads)
    spare = num_shards * slots_per_shard - num_experts
    ascending = np.sort(loads)
    light = np.concatenate([[0.0], np.cumsum(ascending)])
    m = np.arange(1, num_experts + 1)[:, None]
    d = np.arange(1, num_shards + 1)[None, :]
    heavy = light[-1] - light[num_experts - m]
    # The lightest experts beside H are the lightest of all, as far as there are that many beside H.
    beside = np.clip(d * slots_per_shard - spare - m, 0, num_experts - m)
    mean = np.where(d <= m + spare, (heavy + light[beside]) / d, np.inf)
    return float(mean.min(axis=1).max())


def moves_bound(loads: Loads, current: Slots, heaviest: float) -> int:
    """Return the least number of expert loads that bring every shard of one layer to `heaviest` or below.

    `current`: [num_shards, slots_per_shard]. Two counts are added. First, the copies of each expert that
        ceil(load / heaviest) requires beyond the existing ones. Second, for each shard, the fewest single
        experts that must leave so that the load of its experts without another copy falls to `heaviest`. A
        single expert that leaves or is split is loaded elsewhere, and no expert is single on two shards, so
        the counts add up.
    """
    grace = heaviest * (1 + 1e-9)
    copies = np.bincount(current[current != EMPTY], minlength=len(loads))
    wanted = np.maximum(np.ceil(loads / max(grace, 1e-300)), 1).astype(np.int64)
    total = int(np.maximum(wanted - copies, 0).sum())
    stays = (copies == 1) & (wanted == 1)
    for row in current:
        held = row[row != EMPTY]
        total += _leaving(loads[held[stays[held]]], grace)
    return total


def _leaving(loads: Loads, most: float) -> int:
    """Return the fewest of these loads that must leave to bring the sum to `most`."""
    rest = loads.sum() - np.concatenate([[0.0], np.cumsum(np.sort(loads)[::-1])])
    return int(np.argmax(rest <= most)) if len(loads) else 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """The estimated times and memory of both options, for a batch of `tokens` on every GPU.

    shard_s: seconds of all expert layers, sharded, collectives included.
    copy_s: seconds of all expert layers, with the whole model on every GPU.
    collectives_s: the part of `shard_s` that collectives take.
    shard_bytes, copy_bytes: expert weights on one GPU.
    fits_as_copy: the whole model's experts fit on one GPU.
    """

    shard_s: float
    copy_s: float
    collectives_s: float
    shard_bytes: float
    copy_bytes: float
    fits_as_copy: bool

    @property
    def shard(self) -> bool:
        """Whether to shard: a copy does not fit, or takes longer."""
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
    """Estimate both options for as many GPUs as shards, each with its own batch of `shape.tokens` tokens.

    Copied, a GPU reads every expert that its own rows hit. Sharded, it reads the experts in its slots that
    the rows of any GPU hit, computes its placed share of all rows, and takes part in two collectives a layer.
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
    """Return the seconds of one all-gather of every shard's tokens (or the reduce-scatter back).

    Each shard's block crosses the network once to one GPU of every other node, then spreads inside the node:
    latency for each of the two stages, (nodes - 1) blocks by network, (shards - nodes) by link.
    """
    block = shape.tokens * shape.hidden * shape.bytes_per_weight
    stages = (nodes > 1) + (num_shards > nodes)
    network_s = (nodes - 1) * block / (machine.network_gb_s * 1e9)
    link_s = (num_shards - nodes) * block / (machine.link_gb_s * 1e9)
    return stages * machine.latency_us * 1e-6 + network_s + link_s


def _layers_s(share: Loads, placement: Placement, rows: int, shape: ExpertShape, machine: Machine) -> float:
    """Sum over layers the time of the slowest shard: reading its hit experts or multiplying, if longer."""
    piece = np.pad(share / placement.copies(), ((0, 0), (0, 1)))
    slot_rows = np.take_along_axis(piece[:, None], placement.slots, axis=2) * rows
    # Rows choose experts independently of one another: at least one row hits a slot with 1 - e^-rows.
    hit = -np.expm1(-slot_rows)
    read_s = hit.sum(axis=2) * shape.expert_bytes / (machine.memory_gb_s * 1e9)
    work_s = slot_rows.sum(axis=2) * shape.flops_per_row / (machine.compute_tflops * 1e12)
    return float(np.maximum(read_s, work_s).max(axis=1).sum())
