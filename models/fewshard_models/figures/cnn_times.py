"""Figure 3: inference time of CNNs of four sizes, each dense and with channels cut; measures and draws it.

Called by `fewshard figures times`. The weights are random, since time does not depend on them.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from fewshard_models.bench.measurement import Budget, Call, clock_for, interleaved
from fewshard_models.counting import count_macs
from fewshard_models.devices import storage_dtype, subnormals_flushed
from fewshard_models.errors import DataError
from fewshard_models.figures.style import BLUE, ORANGE, figure, millions, save
from fewshard_models.image import FewshardImageForImageClassification as Cnn
from fewshard_models.recipes.width import narrowed, widened

NAME = "figure3"
WIDTHS = (0.5, 1.0, 2.0, 3.0)
KEPT = 0.4
BATCHES = (1, 64)


@dataclass(frozen=True, slots=True)
class CnnTime:
    """One size at one batch size; times are medians in milliseconds. `realised` is R."""

    width: float
    batch: int
    dense_macs: int
    sparse_macs: int
    dense_ms: float
    sparse_ms: float

    @property
    def realised(self) -> float:
        return self.dense_ms / self.sparse_ms * self.sparse_macs / self.dense_macs


@subnormals_flushed()
def measure_cnns(
    device: str, dtype: str, widths: Sequence[float] = WIDTHS, budget: Budget | None = None
) -> list[CnnTime]:
    """Time every size, dense and cut to KEPT of its MACs; all are interleaved in one run per batch size."""
    pairs = {width: _pair(width, device, dtype) for width in widths}
    found = []
    for batch in BATCHES:
        calls: dict[str, Call] = {}
        for width, models in pairs.items():
            for name, model in zip(("dense", "sparse"), models, strict=True):
                calls[f"{name} {width}"] = _call(model, batch, device, dtype)
        seconds = interleaved(calls, clock_for(device), budget or Budget(seconds=15.0, min_rounds=15))
        for width, (dense, sparse) in pairs.items():
            macs = (count_macs(dense.config), count_macs(sparse.config))
            ms = [1e3 * median(seconds[f"{name} {width}"]) for name in ("dense", "sparse")]
            found.append(CnnTime(width, batch, *macs, *ms))
    return found


def _pair(width: float, device: str, dtype: str) -> tuple[Cnn, Cnn]:
    torch.manual_seed(0)
    dense = Cnn(widened(width)).eval()
    sparse = narrowed(dense, KEPT)
    served = [
        model.to(device, storage_dtype(dtype), memory_format=torch.channels_last) for model in (dense, sparse)
    ]
    for model in served:
        model.classifier.float()
        model.prepare_for_inference()
    return served[0], served[1]


def _call(model: Cnn, batch: int, device: str, dtype: str) -> Call:
    size = model.config.image_size
    pixels = torch.randn(batch, 3, size, size, device=device, dtype=storage_dtype(dtype))
    pixels = pixels.to(memory_format=torch.channels_last)

    def call(_: int) -> object:
        with torch.inference_mode():
            return model(pixel_values=pixels).logits

    return call


def write_times(times: Sequence[CnnTime], about: dict[str, Any], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{NAME}.json"
    rows = [{**asdict(time), "realised": time.realised} for time in times]
    file.write_text(json.dumps({**about, "times": rows}, indent=1) + "\n", encoding="utf-8")
    return file


def read_times(file: Path) -> list[CnnTime]:
    """The times in `file`. Raises DataError that names the file if it cannot be used."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))["times"]
        return [CnnTime(**{key: row[key] for key in CnnTime.__dataclass_fields__}) for row in rows]
    except json.JSONDecodeError as error:
        raise DataError(f"{file}, line {error.lineno}: {error.msg}; make it again") from error
    except (OSError, TypeError, KeyError) as error:
        raise DataError(f"{file} cannot be used: {error!r}; make it again") from error


def draw_times(times: Sequence[CnnTime], folder: Path) -> list[Path]:
    """Draw SVG and PNG: a panel per batch size, two bars per network size, R above them."""
    batches = sorted({time.batch for time in times})
    with figure(6.8, 3.6) as drawn:
        for axes, batch in zip(drawn.subplots(1, len(batches), squeeze=False)[0], batches, strict=True):
            _panel(axes, [time for time in times if time.batch == batch])
            axes.set_title(f"batch of {batch}")
        drawn.axes[0].set_ylabel("ms a batch, median")
        drawn.axes[0].legend(loc="upper left")
        drawn.suptitle("CNN inference time, dense beside channels cut (random weights)", fontsize=10)
        return save(drawn, folder, NAME)


def _panel(axes: Any, times: Sequence[CnnTime]) -> None:
    places = range(len(times))
    share = median(time.sparse_macs / time.dense_macs for time in times)
    kinds = (
        ("dense", BLUE, "", -0.2, [time.dense_ms for time in times]),
        (f"cut to {share:.0%} of its MACs", ORANGE, "//", 0.2, [time.sparse_ms for time in times]),
    )
    for label, colour, hatch, offset, heights in kinds:
        at = [place + offset for place in places]
        axes.bar(at, heights, 0.38, color=colour, hatch=hatch, edgecolor="white", label=label)
    for place, time in zip(places, times, strict=True):
        top = (place, max(time.dense_ms, time.sparse_ms))
        raised = {"xytext": (0, 3), "textcoords": "offset points"}
        axes.annotate(f"R {time.realised:.2f}", top, ha="center", fontsize=8, **raised)
    axes.set_ylim(0, 1.3 * max(max(time.dense_ms, time.sparse_ms) for time in times))
    axes.set_xticks(list(places), [millions(time.dense_macs) for time in times])
    axes.set_xlabel("MACs of the dense CNN")
    axes.grid(axis="x", visible=False)
