"""`fewshard conformance`: compares every architecture of transformers with Fewshard, and writes the table."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewshard_serve.errors import ConfigError

TASKS = ("text", "image")


def register(subparsers: Any) -> None:
    """Add the command; `cli` calls it."""
    parser = subparsers.add_parser(
        "conformance",
        help="compare every architecture with transformers",
        description="Make a tiny random checkpoint of every architecture that transformers maps to "
        "classification, and compare the answers with those of transformers for one item at a time.",
    )
    parser.add_argument("names", nargs="*", metavar="TYPE", help="model types of config.json; all by default")
    parser.add_argument("--task", choices=TASKS, help="compare only the architectures of this task")
    parser.add_argument(
        "--experts",
        action="store_true",
        help="compare the text classifiers with experts alone, in every way to route, and their counts",
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table as Markdown")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print a line for each architecture. Returns 1 if one of them differs."""
    if args.experts:
        return _compare_experts(args.names, args.write)
    from fewshard_models.conformance import matrix, report
    from fewshard_models.conformance.tasks import COMPARISONS

    chosen = {task: each for task, each in COMPARISONS.items() if args.task in (None, task)}
    known = {name for architectures, _ in chosen.values() for name in architectures}
    if unknown := sorted(set(args.names) - known):
        raise ConfigError(f"no architecture {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    found: dict[str, list[matrix.Conformance]] = {}
    for task, (architectures, compare) in chosen.items():
        names = [name for name in architectures if not args.names or name in args.names]
        found[task] = []
        for each in matrix.run(compare, names):
            print(report.line(each), flush=True)
            found[task].append(each)
    if args.write is not None:
        args.write.write_text(report.document(found), encoding="utf-8")
    return int(any(each.faults for results in found.values() for each in results))


def _compare_experts(names: Sequence[str], file: Path | None) -> int:
    """As `run`, for architectures with experts. Writes the table into the documentation `file`."""
    from fewshard_models.conformance import experts
    from fewshard_models.sharding.transformers_body import TYPES

    known = experts.architectures_with_experts()
    if unknown := sorted(set(names) - set(known)):
        raise ConfigError(
            f"no architecture with experts {', '.join(unknown)}; there are {', '.join(sorted(known))}"
        )
    found = []
    for name in names or known:
        each = experts.compare(name)
        print(experts.row(each, TYPES), *each.faults, *each.refused, sep="\n  ", flush=True)
        found.append(each)
    if file is not None:
        document = file.read_text(encoding="utf-8")
        file.write_text(experts.replaced(document, experts.table(found, TYPES)), encoding="utf-8")
    return int(any(each.faults for each in found))
