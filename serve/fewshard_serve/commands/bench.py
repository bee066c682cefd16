"""`fewshard bench`: measures kernels or servers beside named alternatives, as JSON and Markdown."""

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from fewshard_core.formats import FORMATS


def register(subparsers: Any) -> None:
    """Add the command; `cli` calls it."""
    parser = subparsers.add_parser("bench", help="measure what this machine runs, beside named peers")
    subjects = parser.add_subparsers(title="what to measure", metavar="SUBJECT", required=True)
    kernels = subjects.add_parser(
        "kernels",
        help="the expert layer beside transformers, F.grouped_mm and a dense layer",
        description="Measure the expert layer beside transformers' three implementations, a minimal "
        "F.grouped_mm pipeline and a dense layer of equal cost. The default grid takes minutes, --full "
        "hours; on a CPU both stop at 4096 tokens.",
    )
    _add_options(kernels)
    kernels.add_argument(
        "--tune",
        action="store_true",
        help="first time every tile of the GPU kernels, and use the fastest; writes tiles.json into OUT",
    )
    kernels.set_defaults(run=run)
    _add_server(subjects)


def _add_server(subjects: Any) -> None:
    """Pass all options on to the load generator, a package that this one must not import."""
    server = subjects.add_parser(
        "server", help="one checkpoint here and on other servers", add_help=False, prefix_chars="\0"
    )
    server.add_argument("options", nargs="*")
    server.set_defaults(run=run_server)


def run_server(args: argparse.Namespace) -> int:
    """Replace this process by the load generator's. Does not return."""
    os.execv(sys.executable, [sys.executable, "-m", "fewshard_loadtest.peers", *args.options])


def _add_options(parser: argparse.ArgumentParser) -> None:
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="size", action="store_const", const="quick", help="a few points")
    size.add_argument("--full", dest="size", action="store_const", const="full", help="every combination")
    parser.set_defaults(size="default")
    parser.add_argument(
        "--out", type=Path, help="folder for kernels.json and kernels.md (default: docs/results/DEVICE)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--dtype", nargs="+", choices=[each.name for each in FORMATS if each.is_cast], help="only these"
    )
    parser.add_argument(
        "--peer",
        nargs="+",
        type=_peer,
        default=[],
        metavar="NAME=PATH",
        help="also measure scattermoe or vllm, imported from the source tree at PATH; needs a GPU",
    )


def _peer(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not equals or name not in ("scattermoe", "vllm"):
        raise argparse.ArgumentTypeError(f"{text!r} is not scattermoe=PATH or vllm=PATH")
    return name, Path(path).expanduser().resolve()


def run(args: argparse.Namespace) -> int:
    """Measure, write the files and print their paths; returns 0."""
    from fewshard_models.bench.session import bench_kernels

    command = shlex.join(["fewshard", *sys.argv[1:]])
    peers, tunes = dict(args.peer), args.tune
    for path in bench_kernels(
        command, args.size, args.device, args.out, dtypes=args.dtype, peers=peers, tunes=tunes
    ):
        print(path)
    return 0
