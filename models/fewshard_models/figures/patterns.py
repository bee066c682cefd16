"""Sparsity patterns of a CNN: the weights that a mask kept, or the channels that a cut left.

Called by `fewshard figures patterns` and `fewshard table2`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fewshard_models.classifier.load import load_checkpoint
from fewshard_models.errors import CheckpointError
from fewshard_models.figures.style import BLUE, GREY, ORANGE, figure, save
from fewshard_models.image import FewshardImageForImageClassification as Cnn

_COLUMNS = 3


def kept_shares(conv: nn.Conv2d) -> NDArray[np.float64]:
    """The share of non-zero weights in the filter of each pair of channels, [out, in]."""
    kept = (conv.weight.detach() != 0).double().flatten(2).mean(dim=2)
    shares: NDArray[np.float64] = kept.numpy()
    return shares


def draw_mask(model: Cnn, title: str, folder: Path, name: str) -> list[Path]:
    """Draw a map per 3x3 convolution: outputs down, inputs across, dark where a filter is fully kept."""
    layers = _convolutions(model)
    rows = -(-len(layers) // _COLUMNS)
    with figure(7.2, 2.5 * rows + 0.5) as drawn:
        grid = drawn.subplots(rows, _COLUMNS, squeeze=False).flatten()
        image: Any = None
        for axes, (layer, conv) in zip(grid, layers.items(), strict=False):
            image = _map(axes, layer, kept_shares(conv))
        for axes in grid[len(layers) :]:
            axes.set_visible(False)
        drawn.colorbar(image, ax=list(grid), shrink=0.6, label="share of a 3x3 filter's weights kept")
        drawn.suptitle(f"{title}: kept weights (orange mark at the right: a dead output)", fontsize=10)
        return save(drawn, folder, name)


def draw_cut(model: Cnn, dense: Cnn, title: str, folder: Path, name: str) -> list[Path]:
    """Draw a bar per convolution: the remaining output channels, out of those of the dense network."""
    left = [conv.out_channels for conv in _convolutions(model).values()]
    whole = [conv.out_channels for conv in _convolutions(dense).values()]
    names = list(_convolutions(dense))
    with figure(6.4, 0.34 * len(names) + 1.2) as drawn:
        axes = drawn.add_subplot()
        places = range(len(names))
        axes.barh(places, whole, 0.75, color="white", edgecolor=GREY, label="dense")
        axes.barh(places, left, 0.75, color=BLUE, label="kept")
        for place, kept, of in zip(places, left, whole, strict=True):
            axes.annotate(f" {kept} of {of}", (max(kept, of), place), va="center", fontsize=8)
        axes.set_yticks(list(places), names)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.2 * max(whole + left))
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("output channels")
        axes.set_title(f"{title}: kept channels")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
        return save(drawn, folder, name)


def _convolutions(model: Cnn) -> dict[str, nn.Conv2d]:
    """The 3x3 convolutions in order by short name: `stage 1 down`, `stage 1 block a`, `stage 1 block b`, …"""
    parts = {"down": "down", "block.0": "block a", "block.1": "block b"}
    found = {}
    for index, stage in enumerate(model.stages, start=1):
        for path, short in parts.items():
            conv = stage.get_submodule(path).conv
            assert isinstance(conv, nn.Conv2d)
            found[f"stage {index} {short}"] = conv
    return found


def _map(axes: Any, layer: str, shares: NDArray[np.float64]) -> Any:
    image = axes.imshow(shares, cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.grid(visible=False)
    axes.set_title(f"{layer}\n{shares.mean():.0%} kept", fontsize=8)
    axes.set_xlabel("inputs", fontsize=7)
    axes.set_ylabel("outputs", fontsize=7)
    axes.tick_params(labelsize=6)
    dead = np.flatnonzero(shares.sum(axis=1) == 0)
    # A dead output is a white line, invisible on white: it gets a mark.
    if len(dead):
        axes.plot(np.full(len(dead), shares.shape[1]), dead, "<", color=ORANGE, markersize=3, clip_on=False)
    return image


def is_masked(model: Cnn, share: float = 0.01) -> bool:
    """Whether more than `share` of the convolutions' weights are zero."""
    weights = [conv.weight for conv in _convolutions(model).values()]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    return zeros > share * sum(weight.numel() for weight in weights)


def draw_pattern(model: Cnn, dense: Cnn | None, title: str, folder: Path) -> list[Path]:
    """Draw the map of a masked network, or what a cut left of `dense`; nothing for other networks."""
    name = f"pattern-{title}"
    with torch.no_grad():
        if is_masked(model):
            return draw_mask(model, title, folder, name)
    if dense is None or _widths(model) == _widths(dense):
        return []
    return draw_cut(model, dense, title, folder, name)


def _widths(model: Cnn) -> list[int]:
    return [conv.out_channels for conv in _convolutions(model).values()]


def load_cnn(directory: Path) -> Cnn:
    """The checkpoint's CNN in fp32. Raises CheckpointError for another architecture."""
    model = load_checkpoint(directory).model
    if not isinstance(model, Cnn):
        raise CheckpointError(f"{directory} is no Fewshard CNN; patterns are drawn of those alone")
    return model
