"""The published greedy rule, as an oracle: replicate by load per copy, then pack heaviest first.

DeepSeek's expert-parallel load balancer (EPLB, 2025), written from its description: every spare slot goes to
the expert with the largest load per copy; then the copies, heaviest first, go to the least loaded shard that
has room. `apart` adds what a placement here must keep too: no two copies of an expert on one shard.
"""

import numpy as np


def greedy_rule(loads, num_shards, slots_per_shard, apart=True):
    """The heaviest shard's load, and the list of experts on each shard, of one layer's loads."""
    copies = np.ones(len(loads), int)
    for _ in range(num_shards * slots_per_shard - len(loads)):
        may = copies < num_shards if apart else np.ones(len(loads), bool)
        if may.any():
            copies[np.argmax(np.where(may, loads / copies, -1.0))] += 1
    pieces = sorted(
        ((loads[e] / copies[e], e) for e in range(len(loads)) for _ in range(copies[e])),
        key=lambda piece: -piece[0],
    )
    shards, weights = [[] for _ in range(num_shards)], np.zeros(num_shards)
    for load, expert in pieces:
        room = [len(held) < slots_per_shard and not (apart and expert in held) for held in shards]
        if not any(room):
            return np.inf, shards
        shard = int(np.argmin(np.where(room, weights, np.inf)))
        shards[shard].append(expert)
        weights[shard] += load
    return float(weights.max()), shards
