"""`curve.jsonl`: progress of a training run, one line every few steps. Written by `fit`, drawn by `figures`.

Fields of a line:
`step`; `epoch`, from 1; `loss`, mean since the previous line; `lr`;
`seconds` of training, summed over resumed runs;
`cpu_seconds` since the previous line, and `cpu_share`, the share of all cores;
`gpu_share` and `gpu_watts`, if a GPU reports them;
`accuracy` at the end of an epoch, if the recipe measures it.
"""

import json
import os
import time
from pathlib import Path
from typing import Any

from fewshard_models.devices import gpu_use
from fewshard_models.errors import DataError

EVERY_STEPS = 20
CURVE_FILE = "curve.jsonl"


class Curve:
    """Appends to `run_dir/curve.jsonl`. Lines after `step` are dropped, since a resumed run repeats them."""

    def __init__(self, run_dir: Path, step: int) -> None:
        self.file = run_dir / CURVE_FILE
        kept = _up_to(self.file, step)
        self._earlier_s = kept[-1]["seconds"] if kept else 0.0
        self._losses: list[float] = []
        self._started = self._at = time.perf_counter()
        self._cpu = time.process_time()
        run_dir.mkdir(parents=True, exist_ok=True)
        temporary = self.file.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        temporary.replace(self.file)

    def add(self, step: int, epoch: int, loss: float, lr: float, accuracy: float | None = None) -> None:
        """Add one step's loss. Writes a line every EVERY_STEPS steps, and whenever there is an accuracy."""
        self._losses.append(loss)
        if step % EVERY_STEPS and accuracy is None:
            return
        line = {
            "step": step,
            "epoch": epoch,
            "loss": round(sum(self._losses) / len(self._losses), 6),
            "lr": lr,
        }
        self._losses.clear()
        measured = {} if accuracy is None else {"accuracy": round(accuracy, 6)}
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({**line, **self._use(), **measured}) + "\n")

    def _use(self) -> dict[str, float]:
        """Time and processor use since the previous line."""
        now, cpu = time.perf_counter(), time.process_time()
        wall_s, cpu_s = now - self._at, cpu - self._cpu
        self._at, self._cpu = now, cpu
        share = cpu_s / max(wall_s, 1e-9) / (os.cpu_count() or 1)
        seconds = self._earlier_s + now - self._started
        return {
            "seconds": round(seconds, 2),
            "cpu_seconds": round(cpu_s, 2),
            "cpu_share": round(share, 3),
            **gpu_use(),
        }


def load_curve(file: Path) -> list[dict[str, Any]]:
    """All lines. Raises DataError that names file and line if one is damaged."""
    if not file.is_file():
        raise DataError(f"no file {file}; training writes {CURVE_FILE} into each phase's folder")
    lines = []
    for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        line = _parsed(text)
        if line is None:
            raise DataError(f"{file}, line {number}: expected step, loss, lr and seconds, got {text[:80]!r}")
        lines.append(line)
    if not lines:
        raise DataError(f"{file} is empty; the run ended before its first {EVERY_STEPS} steps")
    return lines


def _up_to(file: Path, step: int) -> list[dict[str, Any]]:
    """The lines up to `step`; drops a line that was truncated by a kill, and all lines after it."""
    kept: list[dict[str, Any]] = []
    for text in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        line = _parsed(text)
        if line is None or line["step"] > step:
            break
        kept.append(line)
    return kept


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    wanted = ("step", "loss", "lr", "seconds", "cpu_share")
    return line if isinstance(line, dict) and all(key in line for key in wanted) else None
