"""What a comparison found, and how many are run. Called by `fewshard conformance` and the tests."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

REFUSED = "refused"
NOT_COMPARED = "not compared"
Compare = Callable[[str, Path], "Conformance"]


@dataclass(frozen=True, slots=True)
class Conformance:
    """What is known of one architecture.

    model_type: its name in config.json.
    architecture: the name of its classifier.
    mode: how it is served ("packed", "padded", "length by length" …), `REFUSED` or `NOT_COMPARED`.
    reason: why it is refused; "" otherwise.
    faults: the cases in which Fewshard and transformers differ, or in which one of them failed.
    worst: the largest difference in fp32, relative to the largest logit where that is above 1.
    """

    model_type: str
    architecture: str
    mode: str
    reason: str = ""
    faults: tuple[str, ...] = ()
    worst: float = 0.0

    @property
    def is_served(self) -> bool:
        return self.mode not in (REFUSED, NOT_COMPARED)


def run(compare: Compare, model_types: Sequence[str]) -> Iterator[Conformance]:
    """Compare each of these types in a directory of its own."""
    for model_type in model_types:
        with TemporaryDirectory(prefix="fewshard-") as directory:
            yield compare(model_type, Path(directory))


def share_of_the_day(model_types: Sequence[str], day: int, num_days: int) -> list[str]:
    """Return every `num_days`-th type, others each day, so that all are compared in `num_days` days."""
    return list(model_types)[day % num_days :: num_days]
