"""`fewshard plan`: places experts on shards, judges whether sharding pays, and compares policies over time.

With --apply a running server adopts the placement, after its cost was printed.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewshard_core.urls import masked
from fewshard_serve.client import Client, ClientError
from fewshard_serve.commands import formatting, plan_options, plan_report

if TYPE_CHECKING:
    from fewshard_models.sharding import Placement

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

    from fewshard_models.sharding import Placement
    from fewshard_serve.placement.cost_model import Verdict

TIMEOUT_S = 120.0


def apply(args: argparse.Namespace, placement: "Placement") -> None:
    """Print what the placement costs, then apply it. Raises ClientError if the server refuses."""
    client = Client(args.url, TIMEOUT_S)
    body = {"model": args.model, **placement.to_json()}
    planned = client.place(args.model, body)
    out = sys.stderr if args.json else sys.stdout
    cost = f"{planned['moves']} experts to load ({planned['bytes'] / 1e6:.1f} MB)"
    print(f"{masked(args.url)} has {cost} on {planned['replicas']} replicas", file=out)
    if planned["moves"] and not client.place(args.model, {**body, "apply": True})["applied"]:
        raise ClientError(
            f"{args.url} has not put the placement in force within a minute; are all shards there? "
            f"See {args.url}/v2/models/{args.model}/experts"
        )
    print("in force" if planned["moves"] else "nothing to do", file=out)


DESCRIPTION = """Place the experts of a mixture-of-experts model on the shards of a group, from measured loads
(the body of GET /v2/models/<m>/experts, or a matrix with a row for each layer, as JSON or CSV) or made-up
ones. Says how heavy the heaviest shard is, what no placement can beat, how many experts must be loaded, and
whether sharding pays at all. With --simulate policies are compared over drifting loads and failures."""


def register(subparsers: Any) -> None:
    """Add the command; `cli` calls it."""
    parser = subparsers.add_parser(
        "plan", help="place experts on shards, or simulate it", description=DESCRIPTION
    )
    plan_options.add(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Plan and print, or simulate and print; returns 0."""
    plan_options.check(args)
    if args.picture:
        from fewshard_models.figures.placement import require_ending

        require_ending(args.picture)
    return _simulate(args) if args.simulate else _plan(args)


def _plan(args: argparse.Namespace) -> int:
    from fewshard_models.sharding.placement import write_placement
    from fewshard_serve.placement.cost_model import shard_or_copy

    loads = _loads(args)
    slots = plan_options.slots_per_shard(args, loads.shape[1])
    current = _current(args)
    placement = _placed(args, args.policy, loads, slots, current)
    summary = plan_report.summarise(loads, placement, args.nodes, current)
    verdict = shard_or_copy(
        loads, placement, args.nodes, plan_options.shape_of(args), plan_options.machine_of(args)
    )
    if args.picture:
        _draw(args, loads, placement, slots)
    if args.out:
        write_placement(args.out, placement, args.model)
    _print(args, loads, placement, summary, verdict)
    if args.apply:
        apply(args, placement)
    return 0


def _loads(args: argparse.Namespace) -> "NDArray[float64]":
    """Return the loads. Layers without load get equal loads, as in the planner."""
    from fewshard_serve.placement.loads import read_loads
    from fewshard_serve.placement.planner import usable_loads

    made_up = plan_options.is_made_up(args.loads)
    return usable_loads(plan_options.made_up_loads(args) if made_up else read_loads(Path(args.loads)))


def _current(args: argparse.Namespace) -> "Placement | None":
    from fewshard_models.sharding.placement import read_placement

    return read_placement(args.current, args.model) if args.current else None


def _placed(
    args: argparse.Namespace,
    policy: str,
    loads: "NDArray[float64]",
    slots: int,
    current: "Placement | None" = None,
) -> "Placement":
    from fewshard_models.sharding import contiguous, round_robin
    from fewshard_serve.placement.planner import balanced

    num_layers, num_experts = loads.shape
    if policy == "balanced":
        return balanced(loads, args.shards, slots, args.nodes, current)
    plain = contiguous if policy == "contiguous" else round_robin
    return plain(num_layers, num_experts, args.shards, slots)


def _draw(args: argparse.Namespace, loads: "NDArray[float64]", placement: "Placement", slots: int) -> None:
    """Draw the chosen placement, beside contiguous experts if they fit."""
    from fewshard_models.figures.placement import draw_shards

    others = {}
    if args.policy != "contiguous" and args.shards <= loads.shape[1]:
        contiguous = _placed(args, "contiguous", loads, slots)
        others["contiguous"] = plan_report.relative_loads(loads, contiguous)
    bound = float(plan_report.relative_bounds(loads, placement).mean())
    chosen = (args.policy, plan_report.relative_loads(loads, placement))
    draw_shards(chosen, others, bound, plan_report.title(loads, placement, args.nodes), args.picture)


def _print(
    args: argparse.Namespace,
    loads: "NDArray[float64]",
    placement: "Placement",
    summary: plan_report.Summary,
    verdict: "Verdict",
) -> None:
    if args.json:
        fields = {"model": args.model, "policy": args.policy, **asdict(summary)}
        worth = {**asdict(verdict), "shard": verdict.shard, "reason": verdict.reason}
        print(json.dumps({**fields, "shard_or_copy": worth, "placement": placement.to_json()}))
        return
    print(plan_report.title(loads, placement, args.nodes))
    print(formatting.pairs(plan_report.rows(summary, args.policy)))
    print()
    print(plan_report.bars(plan_report.relative_loads(loads, placement)))
    print()
    print(formatting.pairs(plan_report.verdict_rows(verdict)))
    for path in (args.out, args.picture):
        if path:
            print(path)


def _simulate(args: argparse.Namespace) -> int:
    """Simulate every policy that fits, with the same loads and failures."""
    from fewshard_models.errors import PlacementError
    from fewshard_serve.placement.loads import drifting, read_trace
    from fewshard_serve.placement.simulate import POLICIES, simulate

    if plan_options.is_made_up(args.loads):
        start = plan_options.made_up_loads(args)
        trace = list(drifting(start, max(round(args.duration_s / args.step_s), 1), args.drift, args.seed))
    else:
        trace = read_trace(Path(args.loads))
    num_layers, num_experts = trace[0].shape
    slots = plan_options.slots_per_shard(args, num_experts)
    deployment = plan_options.deployment_of(args, num_layers, slots)
    outcomes, refused = [], []
    for policy in POLICIES:
        try:
            outcomes.append(simulate(deployment, policy, trace, args.seed))
        except PlacementError as error:
            refused.append(f"{policy}: {error}")
    if not outcomes:
        raise PlacementError(refused[-1])
    if args.json:
        print(json.dumps({"outcomes": [asdict(each) for each in outcomes], "refused": refused}))
        return 0
    print(formatting.table(plan_report.OUTCOME_HEADER, [plan_report.outcome_row(each) for each in outcomes]))
    for line in refused:
        print(line)
    return 0
