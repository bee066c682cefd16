"""`fewshard table2`: measures what has no result yet, then writes the paper's Table II over all seeds."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewshard_serve.commands import formatting

if TYPE_CHECKING:
    from fewshard_models.evaluation.report import Table
    from fewshard_models.evaluation.store import Found


def register(subparsers: Any) -> None:
    """Add the command; `cli` calls it."""
    parser = subparsers.add_parser(
        "table2",
        help="the paper's Table II, measured",
        description="Measure the checkpoints of a tier that have no result yet, then write the table of all "
        "results: the paper's columns beside ours, R, who pays for the sparsity, and verdicts. Times want a "
        "quiet machine: --no-times leaves them for a later call.",
    )
    parser.add_argument("--tier", choices=("tiny", "small", "paper"), default="small")
    parser.add_argument(
        "--models", type=Path, help="folder with checkpoints (default: the bundled ones for tiny, else none)"
    )
    parser.add_argument(
        "--results", type=Path, help="folder of result files (default: docs/results/DEVICE/seeds/TIER)"
    )
    parser.add_argument("--out", type=Path, help="folder of the table (default: docs/results/DEVICE)")
    parser.add_argument("--again", action="store_true", help="measure what has a result, too")
    parser.add_argument("--no-times", dest="times", action="store_false", help="leave the times out")
    parser.add_argument("--limit", type=int, help="use the first rows of each data set only, for a trial")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, aggregate, write both files and the figures, print the table; returns 0."""
    from fewshard_models.checkpoint import ZOO
    from fewshard_models.devices import choose_device
    from fewshard_models.evaluation.report import make_table
    from fewshard_models.evaluation.store import Asked, find_checkpoints, load_results, measure

    out = args.out or Path("docs/results") / choose_device().name
    results = args.results or out / "seeds" / args.tier
    folder = args.models or (ZOO if args.tier == "tiny" else None)
    found = [] if folder is None else find_checkpoints(folder)
    measure(found, Asked(args.tier, results, args.again, args.times, args.limit), say)
    command = shlex.join(["fewshard", *sys.argv[1:]])
    table = make_table(args.tier, command, load_results(results, args.tier))
    print(in_terminal(table))
    for path in (*table.write(out), *_figures(found, out)):
        print(path)
    return 0


def _figures(found: Sequence["Found"], out: Path) -> list[Path]:
    """Draw the figures whose data exists. Without matplotlib, print a message and draw none."""
    from fewshard_models.figures.all_of import draw_all
    from fewshard_models.figures.style import can_draw

    if not can_draw():
        say("figures are left out: pip install 'fewshard[plots]'")
        return []
    return draw_all({each.model: each.directory for each in reversed(found)}, out)


def in_terminal(table: "Table") -> str:
    """Return the columns that fit a terminal, and the verdicts."""
    from fewshard_models.evaluation.markdown import percent, short

    header = ["system", "n", "accuracy", "MACs", "of dense", "ms at 1", "R at 1", "R at 8", "R at 64"]
    rows = []
    for row in table.rows:
        macs = None if row.first is None else row.first.cost.macs_counted
        speeds = [row.speed(batch) for batch in (1, 8, 64)]
        ms = formatting.UNKNOWN if speeds[0] is None else f"{speeds[0].ms:.2f}"
        realised = [
            formatting.UNKNOWN if speed is None or speed.realised is None else f"{speed.realised:.2f}"
            for speed in speeds
        ]
        share = formatting.UNKNOWN if row.macs_share is None else f"{row.macs_share:.2f}"
        accuracy = row.missing or percent(row.accuracy)
        rows.append([row.system.name, str(len(row.results)), accuracy, short(macs), share, ms, *realised])
    words = {True: "met   ", False: "MISSED", None: "open  "}
    targets = [f"{words[c.met]} {c.system}: {c.promise}; found {c.found}" for c in table.checks]
    return "\n".join([formatting.table(header, rows), "", *table.rivals, *table.payers, *targets])


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
