"""The number of threads that a model computes with: what the user asked for, or what may be measured."""

import logging
import os

from fewshard_core.cpu import available_cores, cpu_quota
from fewshard_serve.errors import ConfigError

logger = logging.getLogger(__name__)

NUM_THREADS = "FEWSHARD_NUM_THREADS"
"""The environment variable with which a user sets the number of threads."""


def num_threads(num_processes: int) -> int:
    """The number of compute threads for each of `num_processes` processes, where none was measured.

    One core is left for HTTP, tokenizers and the proxy. OpenMP threads wait for each other, so one thread
    without a core of its own delays all of them (docs/log.md).

    Raises ConfigError if the user asked for what is no number.
    """
    return _asked() or max(1, (available_cores() - 1) // num_processes)


def threads_to_measure(num_processes: int) -> tuple[int, ...]:
    """The numbers of threads to time for a model of one of `num_processes` processes; `num_threads` first.

    Empty where nothing is to be measured: the user decides, or there is no more than one core.
    """
    quota = cpu_quota()
    if quota is not None and quota < 1:
        logger.warning("the container's quota is %.2f of a core: models compute with one thread", quota)
    most = available_cores() // num_processes
    if _asked() or most < 2:
        return ()
    doubled = [1 << power for power in range(most.bit_length())]
    return tuple(dict.fromkeys([num_threads(num_processes), *doubled, most]))


def _asked() -> int:
    """What the user asked for; 0 for nothing. Raises ConfigError for what is no number of threads."""
    asked = os.environ.get(NUM_THREADS, "")
    if asked and not (asked.isdecimal() and int(asked)):
        raise ConfigError(f"{NUM_THREADS} is {asked!r}; set a number of threads from 1 up, or leave it unset")
    return int(asked or 0)
