"""One session of the kernel benchmark, from the options to the files; called by both of its commands."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fewshard_models.bench import kernels
from fewshard_models.bench.grid import points
from fewshard_models.bench.report import Report
from fewshard_models.bench.tuning import tune
from fewshard_models.devices import choose_device
from fewshard_models.errors import BenchError


def bench_kernels(
    command: str,
    size: str,
    wished_device: str,
    out: Path | None = None,
    *,
    dtypes: Sequence[str] | None = None,
    peers: Mapping[str, Path] | None = None,
    tunes: bool = False,
) -> list[Path]:
    """Measure the grid of that `size` and write the report, and before it the tiles where `tunes`; the paths.

    `command` is what the report says made it; `out` None: docs/results/DEVICE. Progress goes to stderr.
    Raises BenchError for a device that is not there, ValueError for a peer that is not known.
    """
    try:
        device = choose_device(wished_device).name
    except ValueError as error:
        raise BenchError(str(error)) from error
    folder, grid = out or Path("docs/results") / device, points(size, device, dtypes)
    written = [tune(grid, device, folder, _say)] if tunes else []
    measured = kernels.run(grid, kernels.Setup(device, peers=peers or {}), say=_say)
    return [*written, *Report(command, measured).write(folder)]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
