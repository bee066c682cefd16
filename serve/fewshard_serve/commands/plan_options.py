"""The options of `fewshard plan`, and their conversion to values."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewshard_serve.client import DEFAULT_URL
from fewshard_serve.errors import ConfigError
from fewshard_serve.placement.machine import ExpertShape, Machine

if TYPE_CHECKING:
    from numpy import float64
    from numpy.typing import NDArray

    from fewshard_serve.placement.simulate import Deployment


def _options_of(kind: type) -> list[tuple[str, Any, Any, str]]:
    """Return the fields of a dataclass as options: name, type, default and help."""
    return [
        (each.name.replace("_", "-"), each.type, each.default, each.metadata["help"]) for each in fields(kind)
    ]


EXPERT = _options_of(ExpertShape)
MACHINE = _options_of(Machine)
# Some units differ from those of `Deployment`, and 0 stands for its None.
DEPLOYMENT = (
    ("duration-s", float, 3600.0, "simulated time, where loads are made up"),
    ("step-s", float, 10.0, "time between two loads"),
    ("drift", float, 0.02, "how far a load's logarithm walks in a step"),
    ("mtbf-s", float, 0.0, "a shard dies every so often on average; 0: never"),
    ("reform-s", float, 5.0, "the group stands still when a shard dies or joins"),
    ("repair-s", float, 60.0, "until a replacement joins"),
    ("offered", float, 0.0, "tokens a second that come in; 0: as many as can be served"),
    ("rest-ms", float, 5.0, "of a batch, everything but experts and collectives"),
    ("rebalance-s", float, 300.0, "the least time between two changes of placement"),
)


def add(parser: argparse.ArgumentParser) -> None:
    """Add all options. Does not import numpy."""
    parser.add_argument("loads", metavar="LOADS", help="a JSON or CSV file, uniform, zipf or zipf:EXPONENT")
    parser.add_argument("--shards", type=int, required=True, help="shards of the group (GPUs)")
    room = parser.add_mutually_exclusive_group()
    room.add_argument("--slots", type=int, help="experts a shard holds in each layer")
    room.add_argument("--spare", type=int, default=0, help="slots for copies, over all shards (default: 0)")
    parser.add_argument("--nodes", type=int, default=1, help="nodes the shards are on (default: 1)")
    parser.add_argument("--policy", choices=["balanced", "round_robin", "contiguous"], default="balanced")
    parser.add_argument("--model", help="whose placement it is; needed for --current, --out, --apply")
    parser.add_argument("--apply", action="store_true", help="have a running server place them so")
    parser.add_argument("--url", default=DEFAULT_URL, help="the server for --apply (default: %(default)s)")
    parser.add_argument("--current", type=Path, help="the placement file to plan few moves from")
    parser.add_argument("--out", type=Path, help="write the placement to this file")
    parser.add_argument("--picture", type=Path, help="draw shards against load: .svg, .png or .pdf")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    made = parser.add_argument_group("made-up loads")
    made.add_argument("--layers", type=int, default=12, help="(default: 12)")
    made.add_argument("--experts", type=int, default=64, help="experts a layer (default: 64)")
    made.add_argument("--seed", type=int, default=0, help="(default: 0)")
    _group(parser, "shard or copy: the model", EXPERT)
    _group(parser, "shard or copy: the machine", MACHINE)
    simulated = _group(parser, "simulation: LOADS may be a list of loads, one for each step", DEPLOYMENT)
    simulated.add_argument("--simulate", action="store_true", help="compare policies over time instead")


def _group(parser: argparse.ArgumentParser, title: str, options: Any) -> Any:
    group = parser.add_argument_group(title)
    for name, kind, default, text in options:
        group.add_argument(f"--{name}", type=kind, default=default, help=f"{text} (default: {default:g})")
    return group


def check(args: argparse.Namespace) -> None:
    """Raise ConfigError for numbers out of range, and for options that require another one."""
    positive = ["shards", "nodes", "layers", "experts", *map(_attribute, [*EXPERT, *MACHINE])]
    positive += ["duration_s", "step_s"]
    for name in [*positive, *(["slots"] if args.slots is not None else [])]:
        if not 0 < getattr(args, name) < float("inf"):
            raise ConfigError(f"--{name.replace('_', '-')} must be above 0")
    for name in ["spare", *map(_attribute, DEPLOYMENT)]:
        if not 0 <= getattr(args, name) < float("inf"):
            raise ConfigError(f"--{name.replace('_', '-')} must not be negative")
    if (args.current or args.out or args.apply) and not args.model:
        raise ConfigError("--current, --out and --apply need --model NAME: a placement belongs to one model")
    if args.current and args.policy != "balanced":
        raise ConfigError(f"--current is for --policy balanced; {args.policy} is the same whatever is live")


def _attribute(option: Any) -> str:
    return str(option[0]).replace("-", "_")


def is_made_up(loads: str) -> bool:
    """Return whether LOADS names a distribution rather than a file."""
    return loads == "uniform" or loads.split(":", 1)[0] == "zipf"


def made_up_loads(args: argparse.Namespace) -> "NDArray[float64]":
    """Return loads of --layers x --experts. Raises ConfigError for an invalid exponent."""
    from fewshard_serve.placement.loads import uniform, zipf

    if args.loads == "uniform":
        return uniform(args.layers, args.experts)
    text = args.loads.partition(":")[2] or "1.0"
    try:
        exponent = float(text)
    except ValueError:
        exponent = float("nan")
    if not 0 <= exponent <= 10:
        raise ConfigError(f"{args.loads}: the exponent is a number from 0 to 10, as in zipf:1.2")
    return zipf(args.layers, args.experts, exponent, args.seed)


def slots_per_shard(args: argparse.Namespace, num_experts: int) -> int:
    """Return --slots, or enough for every expert once and --spare copies."""
    return int(args.slots or -(-(num_experts + args.spare) // args.shards))


def shape_of(args: argparse.Namespace) -> ExpertShape:
    return ExpertShape(**{_attribute(each): getattr(args, _attribute(each)) for each in EXPERT})


def machine_of(args: argparse.Namespace) -> Machine:
    return Machine(**{_attribute(each): getattr(args, _attribute(each)) for each in MACHINE})


def deployment_of(args: argparse.Namespace, num_layers: int, slots: int) -> "Deployment":
    """Return the simulated group. Times of rows, moves and collectives follow from the machine."""
    from fewshard_serve.placement.cost_model import collective_s
    from fewshard_serve.placement.policy import RebalanceSettings
    from fewshard_serve.placement.simulate import Deployment

    shape, machine = shape_of(args), machine_of(args)
    return Deployment(
        num_shards=args.shards,
        slots_per_shard=slots,
        nodes=args.nodes,
        batch_tokens=args.tokens * args.shards,
        top_k=args.top_k,
        rest_s=args.rest_ms / 1e3,
        collectives_s=2 * num_layers * collective_s(args.shards, args.nodes, shape, machine),
        offered_tokens_per_s=args.offered or None,
        step_s=args.step_s,
        mtbf_s=args.mtbf_s or None,
        reform_s=args.reform_s,
        repair_s=args.repair_s,
        rebalance=RebalanceSettings(
            seconds_per_token=shape.flops_per_row / (machine.compute_tflops * 1e12),
            seconds_per_move=shape.expert_bytes / (machine.network_gb_s * 1e9),
            min_interval_s=args.rebalance_s,
        ),
    )
