"""How long a forward pass may take before it counts as stuck; kept by the runner for each model."""

MIN_ALLOWED_S = 5.0
MAX_ALLOWED_S = 60.0
FACTOR = 10.0


class Pace:
    """Learned from the passes that ended: one that takes ten times as long as any, for its size, hangs.

    `min_s` and `max_s` bound what is allowed; `max_s` holds until a first pass has ended.
    """

    def __init__(self, min_s: float = MIN_ALLOWED_S, max_s: float = MAX_ALLOWED_S) -> None:
        self._min_s, self._max_s = min_s, max_s
        self._slowest_s = 0.0
        self._most_tokens = 0

    def observe(self, num_tokens: int, seconds: float) -> None:
        """A pass over so many tokens has ended."""
        self._slowest_s = max(self._slowest_s, seconds)
        self._most_tokens = max(self._most_tokens, num_tokens, 1)

    def allowed_s(self, num_tokens: int) -> float:
        """How long a pass over so many tokens may take."""
        if self._most_tokens == 0:
            return self._max_s
        expected_s = self._slowest_s * max(1.0, num_tokens / self._most_tokens)
        return min(max(FACTOR * expected_s, self._min_s), self._max_s)
