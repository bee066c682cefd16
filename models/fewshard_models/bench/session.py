"""One session of the kernel benchmark, from options to files, optionally with tuning of the GPU kernels.

Called by both commands of the benchmark.
"""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from fewshard_kernels.moe_ffn import tiles
from fewshard_models.bench import kernels
from fewshard_models.bench.grid import Point, points
from fewshard_models.bench.report import Report
from fewshard_models.devices import choose_device, storage_dtype
from fewshard_models.errors import BenchError

FILE = "tiles.json"


def tune(grid: Iterable[Point], device: str, out: Path, say: Callable[[str], None]) -> Path:
    """Measure the best tiles for every layer and row bucket in `grid`, and use them from now on.

    Writes `out`/tiles.json: the shipped rows, with new ones replaced, ready to be shipped. Raises BenchError
    if the device is not a GPU.
    """
    if device != "cuda":
        raise BenchError("tiles are tuned on the GPU they are for; --tune needs --device cuda")
    from fewshard_kernels.moe_ffn.triton.tune import tune as measure

    rows = dict(tiles.measured_tiles())
    for shape, buckets in layers(grid, torch.cuda.get_device_capability()).items():
        say(f"tuning {shape} at {', '.join(map(str, sorted(buckets)))} rows an expert")
        for row in measure(shape, sorted(buckets), torch.device(device)):
            key, chosen = tiles.from_row(
                {name: value for name, value in row.items() if name != "milliseconds"}
            )
            rows[key] = chosen
    tiles.use_tiles(rows)
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"rows": [tiles.to_row(*key, chosen) for key, chosen in rows.items()]}, indent=1)
    (out / FILE).write_text(text + "\n")
    return out / FILE


def layers(grid: Iterable[Point], capability: tuple[int, int]) -> dict[tiles.LayerShape, set[int]]:
    """The layers of a grid, each with its buckets of rows per expert."""
    found: dict[tiles.LayerShape, set[int]] = {}
    for point in grid:
        shape = tiles.LayerShape(
            capability,
            storage_dtype(point.dtype),
            point.shape.hidden,
            point.shape.width,
            point.num_experts,
            point.top_k,
            point.shape.gated,
        )
        found.setdefault(shape, set()).add(tiles.rows_bucket(point.num_tokens, shape))
    return found


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
    """Measure the grid named `size` and write the report; returns the paths of the files.

    command: the command line that the report shows.
    out: folder of the report; docs/results/DEVICE by default.
    tunes: whether to tune the tiles first.
    Progress goes to stderr. Raises BenchError for a missing device, ValueError for an unknown peer.
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
