"""The load of every expert as a moving average, from counters that only grow."""

import numpy as np
from numpy.typing import NDArray


class LoadAverage:
    """Tokens a second of each expert, where what is `half_life_s` old weighs half.

    Without a clock of its own: whoever reads the counters says when.
    """

    def __init__(self, half_life_s: float) -> None:
        self._half_life_s = half_life_s
        self._counts: NDArray[np.float64] | None = None
        self._at_s = 0.0
        self._tokens: NDArray[np.float64] | None = None
        self._seconds = 0.0

    def observe(self, counts: NDArray[np.generic], at_s: float) -> None:
        """Take in cumulative counts [num_layers, num_experts] as they were at `at_s`.

        Counts below the last ones, or of another shape, are those of a process that began anew: all of them
        have come since then. Raises ValueError where time runs backwards.
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
        """How much time the average stands for."""
        return self._seconds

    @property
    def loads(self) -> NDArray[np.float64] | None:
        """[num_layers, num_experts] tokens a second; None until time has passed between two counts."""
        if self._tokens is None or self._seconds <= 0:
            return None
        return self._tokens / self._seconds
