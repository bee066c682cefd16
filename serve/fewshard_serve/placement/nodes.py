"""Which of the packed shards go to the same node; node n has the n-th run of shard numbers."""

import numpy as np
from numpy.typing import NDArray

from fewshard_models.sharding.placement import EMPTY

Loads = NDArray[np.float64]
Slots = NDArray[np.int32]


def arrange(loads: Loads, slots: Slots, nodes: int) -> Slots:
    """`slots` [layers, shards, slots] with the shards of each layer renamed so that nodes are filled evenly.

    Heaviest first, each shard goes to a node with room that is about the lightest; of those to the one that
    lacks copies of the most load, so that a hot expert's copies are near the tokens of many nodes.
    """
    num_layers, num_shards, _ = slots.shape
    if nodes == 1:
        return slots
    pieces = _pieces(loads, slots)
    shard_loads = pieces.sum(axis=2)
    order, slack = np.argsort(-shard_loads, axis=1, kind="stable"), shard_loads.mean(axis=1) / 2
    layers = np.arange(num_layers)
    filled, node_loads = np.zeros((num_layers, nodes), np.int64), np.zeros((num_layers, nodes))
    holds = np.zeros((num_layers, nodes, loads.shape[1] + 1), bool)
    arranged = np.empty_like(slots)
    for rank in range(num_shards):
        shard = order[:, rank]
        experts, weights = slots[layers, shard], pieces[layers, shard]
        lacking = (weights[:, None] * ~holds[layers[:, None], :, experts].swapaxes(1, 2)).sum(axis=2)
        room = np.where(filled < num_shards // nodes, node_loads, np.inf)
        light = room <= room.min(axis=1, keepdims=True) + slack[:, None]
        node = np.where(light, lacking, -1.0).argmax(axis=1)
        arranged[layers, node * (num_shards // nodes) + filled[layers, node]] = experts
        filled[layers, node] += 1
        node_loads[layers, node] += shard_loads[layers, shard]
        holds[layers[:, None], node[:, None], experts] = True
    return arranged


def near_share(loads: Loads, slots: Slots, nodes: int) -> float:
    """The share of all load that finds a copy on its own node, where tokens come evenly from all nodes."""
    num_layers, num_experts = loads.shape
    held = np.zeros((num_layers, nodes, num_experts + 1), bool)
    by_node = slots.reshape(num_layers, nodes, -1)
    np.put_along_axis(held, by_node, True, axis=2)
    near = held[..., :num_experts].mean(axis=1)
    return float((loads * near).sum() / loads.sum())


def _pieces(loads: Loads, slots: Slots) -> Loads:
    """[layers, shards, slots]: the load of each slot."""
    known = np.pad(loads, ((0, 0), (0, 1)))
    flat = slots.reshape(len(slots), -1)
    counts = np.stack([np.bincount(row[row != EMPTY], minlength=known.shape[1]) for row in flat])
    return np.asarray(np.take_along_axis(known / np.maximum(counts, 1), flat, axis=1).reshape(slots.shape))
