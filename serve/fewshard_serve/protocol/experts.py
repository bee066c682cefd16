"""The body of `GET …/experts`: how an MoE model has routed tokens to experts recently.

The replicas' HTTP service calls it.
"""

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from fewshard_core.values import Diagnosis, ExpertCounts
from fewshard_serve.core import GroupState
from fewshard_serve.expert_statistics import Routing, entropy_ratio, expert_use_ratio, imbalance_ratio


def describe_routing(routing: Routing, group: GroupState | None = None) -> dict[str, Any]:
    """The body of `GET …/experts`. Lists by expert or shard are in the order of their numbers."""
    counts = routing.window
    num_layers, num_experts = counts.tokens.shape
    imbalances, entropies = imbalance_ratio(counts), entropy_ratio(counts)
    uses = expert_use_ratio(counts)
    return {
        "window_s": round(routing.window_s, 3),
        "num_layers": num_layers,
        "num_experts": num_experts,
        "top_k": counts.top_k,
        "group": _describe_group(group),
        "layers": [
            {
                "layer": layer,
                "rows": int(counts.rows[layer]),
                "tokens": counts.tokens[layer].tolist(),
                "tokens_total": routing.total.tokens[layer].tolist(),
                "placement": _placement(group, layer, num_experts),
                "shard_tokens": counts.by_shard[layer].tolist(),
                "shard_tokens_total": routing.total.by_shard[layer].tolist(),
                "imbalance_ratio": _number(imbalances[layer]),
                "router_entropy_ratio": _number(entropies[layer]),
                "expert_use_ratio": _number(uses[layer]),
                "dead_experts": _dead(counts, layer),
            }
            for layer in range(num_layers)
        ],
    }


def describe_diagnoses(parts: Sequence[Diagnosis], labels: Sequence[str]) -> dict[str, Any]:
    """The keys for sampled items in `GET …/experts`: tokens by predicted class, layer and expert."""
    if not parts:
        return {}
    tokens = reduce(add, (part.class_experts for part in parts))
    by_name: dict[str, Any] = {}
    for label, each in zip(labels, tokens, strict=True):
        by_name[label] = by_name.get(label, 0) + each
    return {
        "class_items_sampled": sum(part.num_items for part in parts),
        "class_tokens": {label: each.tolist() for label, each in by_name.items()},
    }


def _placement(group: GroupState | None, layer: int, num_experts: int) -> list[list[int]]:
    """The experts of each shard; a model without shards has one list of all experts."""
    if group is None:
        return [list(range(num_experts))]
    return [list(experts) for experts in group.placement[layer]]


def _describe_group(group: GroupState | None) -> dict[str, Any] | None:
    if group is None:
        return None
    return {
        "shards": group.num_shards,
        "size": group.size,
        "generation": group.generation,
        "reforms_total": group.num_reforms,
        "placement_moves_total": group.num_moves,
        "degraded": group.is_degraded,
    }


def _dead(counts: ExpertCounts, layer: int) -> list[int]:
    """The experts that received no tokens while others did."""
    return np.flatnonzero(counts.tokens[layer] == 0).tolist() if counts.rows[layer] else []


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)
