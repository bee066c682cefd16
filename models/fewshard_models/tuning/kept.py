"""Measures what the cache does not hold, within this process's time; keys are made of a checkpoint's shape.

`classifier.execution` calls it.
"""

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log

from transformers import PreTrainedConfig

from fewshard_models.errors import SettingError
from fewshard_models.tuning.cache import tuning_cache
from fewshard_models.tuning.choice import Measured
from fewshard_models.tuning.machine import digest

logger = logging.getLogger(__name__)

MEASURE = "FEWSHARD_MEASURE"
"""The environment variable: 0 keeps `auto` from measuring."""
PROCESS_LIMIT_S = 10.0
"""What one process spends on measuring. Models that it loads afterwards wait for the next start."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a time depends on, of a checkpoint: its configuration, but not its names and weights."""

    text: str
    num_parameters: int

    @property
    def size_class(self) -> str:
        """Networks of one kind and about one size share their numbers of threads and of tokens."""
        return f"{self.text.split()[0]} of 4^{round(log(max(1, self.num_parameters), 4))} parameters"

    @classmethod
    def of(cls, architecture: str, config: PreTrainedConfig, num_parameters: int) -> "Shape":
        names = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "id2label", "label2id")
        fields = {key: value for key, value in config.to_dict().items() if key not in names}
        return cls(f"{architecture} {digest([fields, len(config.id2label)])}", num_parameters)


def is_measuring() -> bool:
    """Return whether `auto` measures. Raises SettingError for a value that means nothing."""
    value = os.environ.get(MEASURE, "1")
    if value not in ("0", "1"):
        raise SettingError(f"{MEASURE} is {value!r}; set 1 to let auto measure, or 0")
    return value == "1"


@dataclass(slots=True)
class _Spent:
    """Seconds that this process has spent on measuring."""

    seconds: float = 0.0


_spent = _Spent()


def kept(
    key: str, names: Sequence[str], measure: Callable[[], Measured | None], anew: bool
) -> Measured | None:
    """Return what the cache has of these candidates, else measure and keep it; one process at a time.

    Returns None if this process has spent enough on measuring, or `measure` found nothing that is worth
    keeping.
    """
    cache = tuning_cache()
    with cache.alone():
        found = None if anew else Measured.of_json(cache.recall(key), names)
        if found is not None:
            return found
        if _spent.seconds > PROCESS_LIMIT_S and not anew:
            return None
        start = time.monotonic()
        found = measure()
        took_s = time.monotonic() - start
        _spent.seconds += took_s
        if found is None:
            return None
        logger.info("measured %s in %.1f s: %s", key, took_s, found.chosen)
        cache.keep(key, found.as_json())
    return found
