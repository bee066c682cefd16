"""The `fewshard` command: finds sub-commands, runs one, and turns an error into one line and an exit code.

Each package adds its sub-commands through the entry-point group `fewshard.commands`. An entry is a function
`register(subparsers)` in a module that is cheap to import. For each parser it calls `set_defaults(run=...)`
with a function that takes the parsed arguments and returns the exit code. With `take_more`, a command takes
the arguments that the parser does not know, such as operands behind options.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from fewshard_core.errors import FewshardError
from fewshard_serve import __version__
from fewshard_serve.errors import ConfigError
from fewshard_serve.logs import write_line

ENTRY_POINT_GROUP = "fewshard.commands"
DESCRIPTION = "Serve classifiers, dense and sparse, and see what each prediction costs."
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    An error in the usage or the configuration gives 2, an interrupt 130, any other error 1. With
    `FEWSHARD_DEBUG=1`, errors are raised with their traceback.
    """
    parser = build_parser(entry_points(group=ENTRY_POINT_GROUP))
    args, more = parser.parse_known_args(argv)
    take_more: Callable[[argparse.Namespace, Sequence[str]], None] | None = getattr(args, "take_more", None)
    if more and take_more is None:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    run: Callable[[argparse.Namespace], int] = args.run
    try:
        if take_more is not None:
            take_more(args, more)
        status = run(args)
        sys.stdout.flush()
        return status
    except FewshardError as error:
        if os.environ.get("FEWSHARD_DEBUG") == "1":
            raise
        write_line(f"fewshard: error: {error}", sys.stderr)
        return EXIT_USAGE if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return _handle_closed_pipe()


def build_parser(commands: Iterable[EntryPoint]) -> argparse.ArgumentParser:
    """The parser of the command line. A command that cannot be loaded is left out with a warning."""
    parser = argparse.ArgumentParser(prog="fewshard", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"fewshard {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in commands:
        _register(command, subparsers)
    return parser


def _register(command: EntryPoint, subparsers: Any) -> None:
    try:
        register = command.load()
    except (ImportError, AttributeError) as error:
        if os.environ.get("FEWSHARD_DEBUG") == "1":
            raise
        print(f"fewshard: warning: the command {command.name!r} cannot be loaded: {error}", file=sys.stderr)
        return
    register(subparsers)


def _handle_closed_pipe() -> int:
    """Handle a closed pipe (`fewshard models | head -1`), so that Python prints no error at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
