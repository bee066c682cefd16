"""`python -m fewshard_loadtest`: run one plan and print its result as JSON."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import fields

from fewshard_loadtest.dialects import DIALECTS
from fewshard_loadtest.measure import SCENARIOS, Plan


def parse(arguments: Sequence[str] | None = None) -> Plan:
    """The plan of a command line."""
    default = Plan(host="", model="")
    parser = argparse.ArgumentParser(prog="python -m fewshard_loadtest", description=__doc__)
    parser.add_argument("--host", required=True, help="the server, as in http://127.0.0.1:8000")
    parser.add_argument("--model", required=True)
    parser.add_argument("--scenario", choices=SCENARIOS, default=default.scenario)
    parser.add_argument("--users", dest="num_users", type=int, default=default.num_users)
    parser.add_argument(
        "--rate", type=float, default=default.rate, help="requests/s of all users, open-loop alone"
    )
    parser.add_argument(
        "--duration", dest="duration_s", type=float, default=default.duration_s, metavar="SECONDS"
    )
    parser.add_argument("--warmup", dest="warmup_s", type=float, default=default.warmup_s, metavar="SECONDS")
    parser.add_argument(
        "--items", dest="num_items", type=int, default=default.num_items, help="items a request"
    )
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--dialect", choices=DIALECTS, default=default.dialect, help="the server's kind")
    parser.add_argument(
        "--server-pid", type=int, default=default.server_pid, help="read the CPU time of this process's tree"
    )
    options = parser.parse_args(arguments)
    return Plan(**{field.name: getattr(options, field.name) for field in fields(Plan)})


def main() -> int:
    """Print the result; 1 where not one request was answered well."""
    plan = parse()
    from fewshard_loadtest.headless import run_here

    result = run_here(plan)
    print(json.dumps(result.as_dict(), indent=2))
    return 0 if result.p50_ms is not None else 1


if __name__ == "__main__":
    sys.exit(main())
