"""The planner: balanced placements with copies of hot experts, from scratch or near a current one."""

import numpy as np
from numpy.typing import NDArray

from fewshard_models.errors import PlacementError
from fewshard_models.sharding import Placement
from fewshard_models.sharding.placement import require_room
from fewshard_serve.placement.local_search import adopt, improve, relabel
from fewshard_serve.placement.packing import Layer, arrange, copy_counts, pack

Loads = NDArray[np.float64]
Slots = NDArray[np.int32]

# Limits on the packed starts of a layer that are improved, and on the work to find them.
MAX_STARTS = 8
MAX_PACKED = 3e8
# From this many slots on, changes are fewer and found more cheaply.
LARGE = 512
ROUNDING = 1 + 1e-9


def balanced(
    loads: NDArray[np.generic],
    num_shards: int,
    slots_per_shard: int,
    nodes: int = 1,
    current: Placement | None = None,
    tolerance: float = 0.02,
) -> Placement:
    """Return a checked placement that minimises the load of every layer's heaviest shard.

    `loads`: [num_layers, num_experts], not negative, in any unit; a layer without load counts as equal loads.
        Shards are numbered node by node, equally many on each of the `nodes`. The result is never worse than
        packing heaviest first with every spare slot filled (`pack`); `cost_model.heaviest_bound` limits its
        distance from the optimum.

    With `current` (as many shards; experts may be missing, slots may differ) few experts are loaded. A layer
    stays as it is if it is within `tolerance` of a placement from scratch and no worse than `pack`, so equal
    loads move nothing. Other layers are changed step by step, or else placed from scratch with shards
    permuted to what they hold already. `cost_model.moves_bound` gives the moves that every plan needs.

    Raises PlacementError, with the shortage, if the experts do not fit.
    """
    known = usable_loads(loads)
    require_room(known.shape[1], num_shards, slots_per_shard)
    _require_even_nodes(num_shards, nodes)
    packed, fresh = _from_scratch(known, num_shards, slots_per_shard)
    if current is None:
        slots = arrange(known, fresh, nodes)
    else:
        _require_same_group(current, known, num_shards)
        goals = np.minimum(packed, heaviest_loads(known, fresh) * (1 + tolerance)) * ROUNDING
        slots = np.stack([_kept(*each) for each in zip(known, current.slots, fresh, goals, strict=True)])
    placement = Placement(slots, known.shape[1])
    placement.check()
    return placement


def completed(loads: NDArray[np.generic], slots_per_shard: int, current: Placement) -> Placement:
    """Return `current` with only its missing experts loaded: the quickest recovery after a loss.

    It loads as many experts as are missing, which is the minimum. Raises PlacementError.
    """
    known = usable_loads(loads)
    _require_same_group(current, known, current.num_shards)
    require_room(current.num_experts, current.num_shards, slots_per_shard)
    layers = [adopt(*each, slots_per_shard) for each in zip(known, current.slots, strict=True)]
    placement = Placement(np.stack([layer.slots for layer in layers]), current.num_experts)
    placement.check()
    return placement


def usable_loads(loads: NDArray[np.generic]) -> Loads:
    """Return float64 loads. Raises PlacementError unless [layers, experts], finite and not negative."""
    known = np.asarray(loads, dtype=np.float64)
    if known.ndim != 2 or 0 in known.shape:
        raise PlacementError(f"loads are a matrix [layers, experts], not {list(known.shape)}")
    bad = ~np.isfinite(known) | (known < 0)
    if bad.any():
        layer, expert = np.argwhere(bad)[0]
        raise PlacementError(
            f"the load of layer {layer}, expert {expert} is {known[bad][0]:g}; loads are finite, not negative"
        )
    scale = known.max(axis=1, keepdims=True)
    return np.where(scale > 0, known, 1.0)


def shard_loads(loads: NDArray[np.generic], slots: Slots) -> Loads:
    """Return [num_layers, num_shards] of valid `slots`. Copies share an expert's load equally."""
    known = np.pad(np.asarray(loads, dtype=np.float64), ((0, 0), (0, 1)))
    copies = np.maximum(Placement(slots, known.shape[1] - 1).copies(), 1)
    pieces = known / np.pad(copies, ((0, 0), (0, 1)), constant_values=1)
    return np.asarray(np.take_along_axis(pieces[:, None], slots, axis=2).sum(axis=2))


def heaviest_loads(loads: Loads, slots: Slots) -> Loads:
    """Return [num_layers]: the load of each layer's heaviest shard."""
    return np.asarray(shard_loads(loads, slots).max(axis=1))


def _require_even_nodes(num_shards: int, nodes: int) -> None:
    if nodes < 1 or num_shards % nodes:
        raise PlacementError(
            f"{num_shards} shards do not divide evenly over {nodes} nodes; every node has as many shards"
        )


def _require_same_group(current: Placement, loads: Loads, num_shards: int) -> None:
    found = (current.num_layers, current.num_experts, current.num_shards)
    if found != (*loads.shape, num_shards):
        raise PlacementError(
            "the current placement has {} layers, {} experts and {} shards; the loads have ".format(*found)
            + "{} layers and {} experts, and the plan is for {} shards".format(*loads.shape, num_shards)
        )


def _from_scratch(loads: Loads, num_shards: int, slots_per_shard: int) -> tuple[Loads, Slots]:
    """Return each layer's load with every spare slot filled, and the best placement found."""
    starts = _starts(loads, num_shards, slots_per_shard)
    reached = np.stack([heaviest_loads(loads, slots) for slots in starts])
    best = [
        _best_of(layer, starts[np.argsort(reached[:, i], kind="stable"), i]) for i, layer in enumerate(loads)
    ]
    return reached[-1], np.stack(best)


def _starts(loads: Loads, num_shards: int, slots_per_shard: int) -> Slots:
    """Return [starts, layers, shards, slots]: packed with more and more spare slots filled, last with all."""
    num_layers, num_experts = loads.shape
    num_slots = num_shards * slots_per_shard
    spare = num_slots - num_experts
    num_starts = int(np.clip(MAX_PACKED / (num_layers * num_slots * num_shards), 1, spare + 1))
    spares = [spare - round(i * spare / num_starts) for i in range(num_starts)][::-1]
    copies = copy_counts(loads, num_shards, num_slots, spares)
    repeated = np.broadcast_to(loads, copies.shape).reshape(-1, num_experts)
    slots = pack(repeated, copies.reshape(-1, num_experts), num_shards, slots_per_shard)
    return slots.reshape(len(spares), num_layers, num_shards, slots_per_shard)


def _best_of(loads: Loads, starts: Slots) -> Slots:
    """Improve the first of these starts. Return the slots with the lightest heaviest shard."""
    goal = loads.sum() / starts.shape[1] * ROUNDING
    layers = [Layer(loads, slots) for slots in starts[:MAX_STARTS]]
    for layer in layers:
        improve(layer, goal, _max_changes(layer), frugal=False)
        if layer.heaviest <= goal:
            return layer.slots
    return min(layers, key=lambda layer: layer.heaviest).slots


def _kept(loads: Loads, held: Slots, fresh: Slots, goal: float) -> Slots:
    """Change `held` until its heaviest shard reaches `goal`. Return `fresh`, relabelled, if that fails."""
    layer = adopt(loads, held, fresh.shape[1])
    adopted = layer.slots.copy()
    improve(layer, goal, _max_changes(layer), frugal=layer.slots.size < LARGE)
    return layer.slots if layer.heaviest <= goal else relabel(fresh, adopted)


def _max_changes(layer: Layer) -> int:
    return 4 * layer.slots.size if layer.slots.size < LARGE else 2 * layer.num_shards
