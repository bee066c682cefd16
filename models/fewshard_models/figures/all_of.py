"""Draws every figure whose data is available: points and times, and patterns of the table's CNNs.

Called by `fewshard table2`.
"""

from collections.abc import Mapping
from pathlib import Path

from fewshard_models.evaluation.baselines import SYSTEMS
from fewshard_models.figures.cnn_times import NAME as TIMES
from fewshard_models.figures.cnn_times import draw_times, read_times
from fewshard_models.figures.patterns import draw_pattern, load_cnn
from fewshard_models.figures.tradeoff import NAME as TRADEOFF
from fewshard_models.figures.tradeoff import draw_tradeoff, read_points


def draw_all(checkpoints: Mapping[str, Path], folder: Path) -> list[Path]:
    """Draw the figures into `folder` and return their paths.

    `folder` may hold `figure2.json` and `figure3.json`. A pattern is drawn for each CNN among `checkpoints`
    (by system) that is masked or was cut from the dense one.
    """
    paths: list[Path] = []
    if (points := folder / f"{TRADEOFF}.json").is_file():
        paths += draw_tradeoff(read_points(points), folder)
    if (times := folder / f"{TIMES}.json").is_file():
        paths += draw_times(read_times(times), folder)
    for name, directory in checkpoints.items():
        system = SYSTEMS[name]
        if system.kind in ("static", "dynamic") and system.dense is not None:
            dense = checkpoints.get(system.dense)
            of_dense = None if dense is None else load_cnn(dense)
            paths += draw_pattern(load_cnn(directory), of_dense, name, folder)
    return paths
