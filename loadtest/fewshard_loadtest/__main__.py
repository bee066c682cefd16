"""`python -m fewshard_loadtest`: run one plan and print its result as JSON."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from fewshard_loadtest.adapters import DIALECTS
from fewshard_loadtest.errors import ScenarioError
from fewshard_loadtest.measure import Plan
from fewshard_loadtest.protocols import PROTOCOLS

_OPTIONS = {"num_users": "users", "duration_s": "duration", "warmup_s": "warmup", "num_items": "items"}
_HELP = {
    "host": "the server, as in http://127.0.0.1:8000; of gRPC 127.0.0.1:8001",
    "protocol": "how it is asked (default: %(default)s)",
    "payload": "texts, images, sst2, cifar10 or a file (default: %(default)s)",
    "rate": "requests/s of all users: an open loop; without it the loop is closed",
    "num_items": "items a request",
    "dialect": "the server's kind",
    "server_pid": "read the CPU time of this process's tree",
    "duration_s": "seconds",
    "warmup_s": "seconds that do not count",
}
_CHOICES = {"protocol": tuple(PROTOCOLS), "dialect": tuple(DIALECTS)}
_NOT_HERE = ("stages", "mix")


def parse(arguments: Sequence[str] | None = None) -> tuple[Plan, Path | None]:
    """The plan of a command line, and the file for its samples."""
    parser = argparse.ArgumentParser(prog="python -m fewshard_loadtest", description=__doc__)
    parser.add_argument("--plan", type=json.loads, help="the whole plan as JSON, instead of the others")
    parser.add_argument("--samples", type=Path, metavar="FILE.npz", help="write every request there")
    default = Plan(host="", model="")
    names = [field.name for field in fields(Plan) if field.name not in _NOT_HERE]
    for name in names:
        value = getattr(default, name)
        parser.add_argument(
            f"--{_OPTIONS.get(name, name).replace('_', '-')}",
            dest=name,
            type=float if value is None else type(value),
            default=value,
            choices=_CHOICES.get(name),
            help=_HELP.get(name),
        )
    options = parser.parse_args(arguments)
    if options.plan is not None:
        return _checked(parser, Plan.from_dict(options.plan)), options.samples
    if not options.host or not options.model:
        parser.error("--host and --model are needed")
    return Plan(**{name: getattr(options, name) for name in names}), options.samples


def _checked(parser: argparse.ArgumentParser, plan: Plan) -> Plan:
    for name, choices in _CHOICES.items():
        if getattr(plan, name) not in choices:
            parser.error(f"{name}: invalid choice: {getattr(plan, name)!r}; there are: {', '.join(choices)}")
    return plan


def main() -> int:
    """Print the result. Returns 1 if no request succeeded, 2 for a usage error."""
    plan, samples = parse()
    from fewshard_loadtest.headless import run_here

    try:
        result = run_here(plan, samples)
    except ScenarioError as error:
        print(f"fewshard: error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(result.as_dict(), indent=2))
    return 0 if result.p50_ms is not None else 1


if __name__ == "__main__":
    sys.exit(main())
