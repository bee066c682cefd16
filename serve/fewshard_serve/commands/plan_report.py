"""The output of `fewshard plan`: a summary, bars of the shards, the verdict and the simulation's table."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fewshard_serve.commands import formatting

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

    from fewshard_models.sharding import Placement
    from fewshard_serve.placement.cost_model import Verdict
    from fewshard_serve.placement.simulate import Outcome

MAX_BARS = 32
BAR_WIDTH = 40
OUTCOME_HEADER = (
    "policy", "tokens/s", "heaviest/mean", "experts loaded", "changes", "failures", "lost s", "loading s",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures of one placement. Loads are in units of a layer's mean shard load.

    heaviest: the heaviest shard's load, averaged over layers.
    worst_layer: the same for the worst layer.
    bound: the lower bound of `heaviest`, averaged over layers.
    worst_gap: how far a layer's heaviest shard is above its bound at most, as a share.
    near_share: the share of load that has a copy on its own node.
    num_moves: experts to load; None without a current placement.
    moves_bound: a lower bound of `num_moves`.
    """

    num_layers: int
    num_experts: int
    num_shards: int
    slots_per_shard: int
    nodes: int
    heaviest: float
    worst_layer: float
    bound: float
    worst_gap: float
    num_copies: int
    near_share: float
    num_moves: int | None
    moves_bound: int | None


def summarise(
    loads: "NDArray[float64]", placement: "Placement", nodes: int, current: "Placement | None"
) -> Summary:
    """Compute all figures of a checked placement."""
    from fewshard_serve.placement.packing import near_share

    heaviest = relative_loads(loads, placement).max(axis=1)
    bounds = relative_bounds(loads, placement)
    return Summary(
        num_layers=placement.num_layers,
        num_experts=placement.num_experts,
        num_shards=placement.num_shards,
        slots_per_shard=placement.slots_per_shard,
        nodes=nodes,
        heaviest=float(heaviest.mean()),
        worst_layer=float(heaviest.max()),
        bound=float(bounds.mean()),
        worst_gap=float((heaviest / bounds).max() - 1),
        num_copies=int(placement.copies().sum()) - placement.num_layers * placement.num_experts,
        near_share=near_share(loads, placement.slots, nodes),
        num_moves=None if current is None else _moves(current, placement),
        moves_bound=None if current is None else _least_moves(loads, placement, current),
    )


def _moves(current: "Placement", placement: "Placement") -> int:
    from fewshard_serve.placement.local_search import num_moves

    return num_moves(current, placement)


def _least_moves(loads: "NDArray[float64]", placement: "Placement", current: "Placement") -> int:
    """Return the loads of experts that every equally balanced placement needs."""
    from fewshard_serve.placement.cost_model import moves_bound
    from fewshard_serve.placement.planner import heaviest_loads

    levels = heaviest_loads(loads, placement.slots)
    return sum(moves_bound(*each) for each in zip(loads, current.slots, levels.tolist(), strict=True))


def relative_loads(loads: "NDArray[float64]", placement: "Placement") -> "NDArray[float64]":
    """Return [num_layers, num_shards], in units of the layer's mean shard."""
    from fewshard_serve.placement.planner import shard_loads

    by_shard = shard_loads(loads, placement.slots)
    relative: NDArray[float64] = by_shard / by_shard.mean(axis=1, keepdims=True)
    return relative


def relative_bounds(loads: "NDArray[float64]", placement: "Placement") -> "NDArray[float64]":
    """Return [num_layers]: a load that some shard reaches in every placement of this size."""
    import numpy as np

    from fewshard_serve.placement.cost_model import heaviest_bound

    sizes = (placement.num_shards, placement.slots_per_shard)
    mean = loads.sum(axis=1) / placement.num_shards
    bounds: NDArray[float64] = np.array([heaviest_bound(layer, *sizes) for layer in loads]) / mean
    return bounds


def title(loads: "NDArray[float64]", placement: "Placement", nodes: int) -> str:
    num_layers, num_experts = loads.shape
    where = "" if nodes == 1 else f" on {nodes} nodes"
    return (
        f"{num_layers} layers of {num_experts} experts on {placement.num_shards} shards "
        f"of {placement.slots_per_shard} slots{where}"
    )


def rows(summary: Summary, policy: str) -> list[tuple[str, str]]:
    """Return the summary, one line a fact."""
    lines = [
        ("policy", policy),
        ("heaviest shard", f"{summary.heaviest:.3f} x the mean (worst layer {summary.worst_layer:.3f})"),
        ("no placement below", f"{summary.bound:.3f} (worst layer {summary.worst_gap:.1%} above its bound)"),
        ("copies", f"{summary.num_copies} of {_spare(summary)} spare slots"),
    ]
    if summary.nodes > 1:
        lines.append(
            ("near", f"{formatting.fraction(summary.near_share)} of the load has a copy on its own node")
        )
    if summary.num_moves is not None:
        lines.append(
            ("experts to load", f"{summary.num_moves} (no plan as balanced below {summary.moves_bound})")
        )
    return lines


def _spare(summary: Summary) -> int:
    return summary.num_layers * (summary.num_shards * summary.slots_per_shard - summary.num_experts)


def bars(relative: "NDArray[float64]") -> str:
    """Return a bar of each shard's mean over layers, and its heaviest layer. Many shards are grouped."""
    num_shards = relative.shape[1]
    run = -(-num_shards // MAX_BARS)
    most = float(relative.mean(axis=0).max())
    lines = []
    for first in range(0, num_shards, run):
        part = relative[:, first : first + run]
        mean = float(part.mean(axis=0).max())
        last = min(first + run, num_shards) - 1
        label = f"{first}" if first == last else f"{first}-{last}"
        lines.append(
            f"{label:>9}  {'█' * round(BAR_WIDTH * mean / most):<{BAR_WIDTH}} {mean:.2f}  {part.max():.2f}"
        )
    kind = "shard" if run == 1 else "heaviest"
    return "\n".join([f"{kind:>9}  {'load, 1 = mean':<{BAR_WIDTH}} mean  worst layer", *lines])


def verdict_rows(verdict: "Verdict") -> list[tuple[str, str]]:
    """Return both times and the verdict."""
    shard = f"{1e3 * verdict.shard_s:.3g} ms, of it collectives {1e3 * verdict.collectives_s:.3g} ms"
    return [
        ("expert layers, sharded", f"{shard}; {verdict.shard_bytes / 1e9:.3g} GB of experts a GPU"),
        ("expert layers, copied", f"{1e3 * verdict.copy_s:.3g} ms; {verdict.copy_bytes / 1e9:.3g} GB a GPU"),
        ("verdict (a model)", verdict.reason),
    ]


def outcome_row(outcome: "Outcome") -> tuple[str, ...]:
    """Return one policy's outcome, in the order of OUTCOME_HEADER."""
    return (
        outcome.policy,
        formatting.count(outcome.tokens_per_s),
        f"{outcome.imbalance:.3f}",
        str(outcome.num_moves),
        str(outcome.num_rebalances),
        str(outcome.num_failures),
        f"{outcome.lost_s:.1f}",
        f"{outcome.by_loading_s:.1f}",
    )
