"""`fewshard loadtest` and `fewshard report`; also `python -m fewshard_loadtest.commands loadtest …`.

Exit codes: 0 done; 1 nothing could be measured, or `report compare` found a budget broken; 2 a mistake of the
caller's; 3 done, but some model meets the SLO at no rate; 4 the server died or stopped answering, the report
is partial; 130 interrupted, the report is partial.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_SLO, EXIT_PARTIAL, EXIT_INTERRUPTED = 0, 1, 2, 3, 4, 130


def register_loadtest(subparsers: Any) -> None:
    """Add the `loadtest` command; called by `fewshard`."""
    parser = subparsers.add_parser(
        "loadtest",
        help="load-test models side by side and write the report",
        description="Carry a scenario out (docs/load-tests.md) and write report.html, .json, .csv and .md.",
        epilog=str(__doc__).partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scenario", type=Path, metavar="SCENARIO.yaml")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: runs/loadtest/NAME-TIME")
    parser.add_argument("--models", metavar="A,B", help="only these of the scenario's models")
    parser.add_argument("--repeats", type=int, help="instead of the scenario's")
    parser.add_argument("--check", action="store_true", help="read the scenario, say how long it takes, end")
    parser.set_defaults(run=run_loadtest)


def register_report(subparsers: Any) -> None:
    """Add the `report` command; called by `fewshard`."""
    parser = subparsers.add_parser(
        "report",
        help="write a load test's report anew, or compare two",
        usage="fewshard report DIR [options] | fewshard report compare BEFORE AFTER [--budget budget.yaml]",
        description="Write the report of a load test's folder anew, with other prices where given; or say "
        "what changed between two, with exit code 1 where a budget is broken.",
    )
    parser.add_argument("folders", nargs="+", metavar="DIR", help="or: compare BEFORE AFTER")
    parser.add_argument("--machine", help="a machine of the price list")
    parser.add_argument("--per-hour", type=float, help="your own price of one machine for an hour")
    parser.add_argument("--currency", help="of --per-hour, as in USD")
    parser.add_argument("--budget", type=Path, metavar="budget.yaml", help="what may get worse, and how much")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the report goes (default: DIR)")
    parser.set_defaults(run=run_report)


def run_loadtest(args: argparse.Namespace) -> int:
    """Run a load test and write its report. Returns one of the module's exit codes."""
    return _with_plain_errors(lambda: _loadtest(args))


def run_report(args: argparse.Namespace) -> int:
    """Write or compare reports. Returns one of the module's exit codes."""
    return _with_plain_errors(lambda: _compare(args) if args.folders[0] == "compare" else _report(args))


def _with_plain_errors(act: Callable[[], int]) -> int:
    from fewshard_loadtest.errors import LoadTestError, ScenarioError

    try:
        return act()
    except LoadTestError as error:
        print(f"fewshard: error: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, ScenarioError) else EXIT_FAILED
    except ModuleNotFoundError as error:
        print(f"fewshard: error: {error}: pip install 'fewshard[loadtest]'", file=sys.stderr)
        return EXIT_USAGE


def _loadtest(args: argparse.Namespace) -> int:
    from fewshard_loadtest.cost.prices import price_of
    from fewshard_loadtest.report.output import write_report
    from fewshard_loadtest.runner import conduct
    from fewshard_loadtest.scenario import load_scenario

    scenario = load_scenario(args.scenario, args.models.split(",") if args.models else ())
    if args.repeats is not None:
        scenario = scenario.model_validate({**scenario.model_dump(), "repeats": args.repeats})
    price_of(scenario.price)  # fail now, not after the test, if the price is wrong
    _say(f"{scenario.name}: about {scenario.about_seconds() / 60:.0f} minutes")
    if args.check:
        return EXIT_OK
    folder = args.out or Path("runs/loadtest") / f"{scenario.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    command = shlex.join(["fewshard", *sys.argv[1:]])
    run = conduct(scenario, folder, command, _say)
    report = write_report(run, folder)
    for path in report.paths:
        print(path)
    _say(report.verdict)
    if run.partial:
        return EXIT_INTERRUPTED if run.partial == "interrupted" else EXIT_PARTIAL
    return EXIT_SLO if run.has_unmet_slo else EXIT_OK


def _report(args: argparse.Namespace) -> int:
    from fewshard_loadtest.report.output import write_report
    from fewshard_loadtest.results_store import Run

    folder = Path(args.folders[0])
    run = Run.load(folder)
    if args.machine or args.per_hour is not None:
        run.scenario["price"] = {
            "machine": args.machine,
            "per_hour": args.per_hour,
            "currency": args.currency,
        }
    for path in write_report(run, folder, args.out).paths:
        print(path)
    return EXIT_OK


def _compare(args: argparse.Namespace) -> int:
    from fewshard_loadtest.errors import ScenarioError
    from fewshard_loadtest.report.compare import compare

    if len(args.folders) != 3:
        raise ScenarioError("compare takes two folders or report.json files: compare BEFORE AFTER")
    outcome = compare(Path(args.folders[1]), Path(args.folders[2]), args.budget)
    print(outcome.as_markdown())
    return EXIT_FAILED if outcome.broken else EXIT_OK


def _say(text: str) -> None:
    print(f"fewshard: {text}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both commands without the server package."""
    parser = argparse.ArgumentParser(prog="fewshard")
    subparsers = parser.add_subparsers(required=True)
    register_loadtest(subparsers)
    register_report(subparsers)
    args = parser.parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = args.run
    return run(args)


if __name__ == "__main__":
    sys.exit(main())
