"""Training curves from `curve.jsonl` files: loss, accuracy, processor use, energy.

Called by `fewshard figures curves`.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from fewshard_models.figures.style import COLOURS, figure, save

WATTS_PER_CORE = 10.0
"""CPU energy is modelled as CPU time times these watts, since virtual machines hide the energy counters. GPU
energy is measured."""
Lines = Sequence[dict[str, Any]]


def draw_curves(runs: Mapping[str, Lines], folder: Path, name: str = "curves") -> list[Path]:
    """Draw SVG and PNG with four panels, and one colour per run."""
    with figure(7.2, 5.2) as drawn:
        loss, accuracy, use, energy = drawn.subplots(2, 2).flatten()
        for index, (run, lines) in enumerate(runs.items()):
            style = {"color": COLOURS[index % len(COLOURS)], "linestyle": ("-", "--", ":")[index // 2 % 3]}
            minutes = [line["seconds"] / 60 for line in lines]
            loss.plot([line["step"] for line in lines], [line["loss"] for line in lines], label=run, **style)
            judged = [line for line in lines if "accuracy" in line]
            percents = [100 * line["accuracy"] for line in judged]
            accuracy.plot([line["epoch"] for line in judged], percents, marker="o", markersize=4, **style)
            use.plot(minutes, [100 * line["cpu_share"] for line in lines], **style)
            if any("gpu_share" in line for line in lines):
                shares = [100 * line.get("gpu_share", 0.0) for line in lines]
                use.plot(minutes, shares, linewidth=0.8, **style)
            energy.plot(minutes, kilojoules(lines), **style)
        _label(loss, "Training loss", "step", "mean loss")
        _label(accuracy, "Accuracy", "epoch", "accuracy, %")
        _label(use, "Processor use (thin: GPU)", "minutes of training", "% of all cores")
        _label(energy, f"Energy, modelled at {WATTS_PER_CORE:g} W a busy core", "minutes of training", "kJ")
        _say_what_is_missing(accuracy)
        use.set_ylim(0, 105)
        loss.legend(loc="upper right", fontsize=8)
        return save(drawn, folder, name)


def kilojoules(lines: Lines) -> list[float]:
    """Energy up to each line: modelled for the CPU, measured watts times elapsed time for a GPU."""
    joules, before_s = [], 0.0
    for line in lines:
        gpu_joules = line.get("gpu_watts", 0.0) * (line["seconds"] - before_s)
        joules.append(WATTS_PER_CORE * line["cpu_seconds"] + gpu_joules)
        before_s = line["seconds"]
    return list(accumulate(joule / 1e3 for joule in joules))


def _label(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)


def _say_what_is_missing(axes: Any) -> None:
    if not any(len(line.get_xdata()) for line in axes.get_lines()):
        axes.text(0.5, 0.5, "not measured during training", ha="center", transform=axes.transAxes)
        axes.set_xticks([])
        axes.set_yticks([])
