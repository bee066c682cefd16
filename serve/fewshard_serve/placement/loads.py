"""Expert loads: a moving average of counters, synthetic loads, and loads read from files.

`policy` uses the average; `fewshard plan` uses the others.
"""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewshard_models.errors import DataError, PlacementError
from fewshard_serve.placement.planner import usable_loads


class LoadAverage:
    """Tokens a second of each expert, averaged with weights that halve every `half_life_s` seconds.

    It has no clock: the caller passes the time of each reading.
    """

    def __init__(self, half_life_s: float) -> None:
        self._half_life_s = half_life_s
        self._counts: NDArray[np.float64] | None = None
        self._at_s = 0.0
        self._tokens: NDArray[np.float64] | None = None
        self._seconds = 0.0

    def observe(self, counts: NDArray[np.generic], at_s: float) -> None:
        """Add cumulative counts [num_layers, num_experts] as read at `at_s`.

        Counts that are lower than the last ones, or of another shape, come from a restarted process; all of
        them are new. Raises ValueError if time runs backwards.
        """
        now = np.asarray(counts, dtype=np.float64)
        if self._counts is None:
            self._counts, self._at_s = now, at_s
            return
        passed_s = at_s - self._at_s
        if passed_s < 0:
            raise ValueError(f"counts of {at_s} s come after those of {self._at_s} s")
        anew = now.shape != self._counts.shape or bool((now < self._counts).any())
        self._add(now if anew else now - self._counts, passed_s)
        self._counts, self._at_s = now, at_s

    def _add(self, tokens: NDArray[np.float64], passed_s: float) -> None:
        fading = 0.5 ** (passed_s / self._half_life_s)
        known = self._tokens
        if known is None or known.shape != tokens.shape:
            known, self._seconds = np.zeros_like(tokens), 0.0
        self._tokens = known * fading + tokens
        self._seconds = self._seconds * fading + passed_s

    @property
    def seconds(self) -> float:
        """The effective time that the average covers, in seconds."""
        return self._seconds

    @property
    def loads(self) -> NDArray[np.float64] | None:
        """[num_layers, num_experts] tokens a second; None until time has passed between two readings."""
        if self._tokens is None or self._seconds <= 0:
            return None
        return self._tokens / self._seconds


Loads = NDArray[np.float64]


def uniform(num_layers: int, num_experts: int) -> Loads:
    """Return equal loads [num_layers, num_experts]; each layer sums to 1."""
    return np.full((num_layers, num_experts), 1 / num_experts)


def zipf(num_layers: int, num_experts: int, exponent: float, seed: int) -> Loads:
    """Return [num_layers, num_experts]: load r^-exponent at rank r, each layer shuffled, with sum 1."""
    random = np.random.default_rng(seed)
    ranked = np.arange(1, num_experts + 1, dtype=np.float64) ** -exponent
    return np.stack([random.permutation(ranked / ranked.sum()) for _ in range(num_layers)])


def drifting(start: Loads, steps: int, drift: float, seed: int) -> Iterator[Loads]:
    """Yield `steps` loads. Each logarithm takes a normal step times `drift`; layers keep their sum."""
    random = np.random.default_rng(seed)
    now = start
    for _ in range(steps):
        yield now
        moved = now * np.exp(drift * random.standard_normal(now.shape))
        now = moved * (start.sum(axis=1, keepdims=True) / moved.sum(axis=1, keepdims=True))


def read_loads(file: Path) -> Loads:
    """Read loads [num_layers, num_experts] from a JSON or CSV file; a list of matrices is rejected.

    JSON: the body of `GET /v2/models/<m>/experts` (the window's tokens, or all since the start if the window
        is empty), a matrix, or `{"loads": matrix}`. CSV: a line for each layer. Raises DataError.
    """
    return _checked(file, _matrix(file, _content(file)))


def read_trace(file: Path) -> list[Loads]:
    """Read a JSON list with one load for each step, in the forms of `read_loads`; or a single load."""
    content = _content(file)
    steps = content if isinstance(content, list) and content and _is_step(content[0]) else [content]
    trace = [_checked(file, _matrix(file, step)) for step in steps]
    if len({step.shape for step in trace}) > 1:
        raise DataError(f"{file}: the steps differ in layers or experts")
    return trace


def _is_step(value: Any) -> bool:
    """Return whether the value is a body or a matrix rather than a row of numbers."""
    return isinstance(value, dict) or (bool(value) and isinstance(value, list) and isinstance(value[0], list))


def _content(file: Path) -> Any:
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix.lower() == ".csv":
            return [[float(cell) for cell in row] for row in csv.reader(io.StringIO(text)) if row]
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{file}, line {error.lineno}: {error.msg}; give JSON, or a file named .csv"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{file} holds no loads: {error}") from error


def _matrix(file: Path, content: Any) -> Any:
    if isinstance(content, dict) and "layers" in content:
        return _routed(file, content["layers"])
    return content.get("loads") if isinstance(content, dict) else content


def _routed(file: Path, layers: Any) -> Any:
    """Return each layer's tokens in the window; the totals if the window is empty."""
    try:
        window = [layer["tokens"] for layer in layers]
        return window if np.any(np.array(window)) else [layer["tokens_total"] for layer in layers]
    except (TypeError, KeyError, ValueError) as error:
        raise DataError(f"{file}: its layers are not those of GET /v2/models/<m>/experts") from error


def _checked(file: Path, matrix: Any) -> Loads:
    try:
        array = np.array(matrix)
    except ValueError as error:
        raise DataError(f"{file}: every layer has as many experts; these lists differ in length") from error
    if array.dtype.kind not in "iuf":
        raise DataError(f"{file} holds no matrix of numbers, a row for each layer")
    try:
        usable_loads(array)
    except PlacementError as error:
        raise DataError(f"{file}: {error}") from error
    return array.astype(np.float64)
