"""Turns inputs into items off the event loop; called by the engine for every admitted request."""

import asyncio
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from fewshard_serve.backends.base import Model
from fewshard_serve.core import Input, Item
from fewshard_serve.errors import FewshardError, InternalError

logger = logging.getLogger(__name__)

MAX_THREADS = 4


class Preparer:
    """A small thread pool: tokenizers and image decoders release the GIL, so a few threads are enough."""

    def __init__(self, num_threads: int | None = None) -> None:
        num_threads = num_threads or min(MAX_THREADS, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="fewshard-prepare")

    async def prepare(self, model: Model, inputs: Sequence[Input], truncate: bool) -> list[Item]:
        """One item an input, in order. Raises `UnusableItem`, or `InternalError` where the model breaks."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, _prepare, model, inputs, truncate)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def _prepare(model: Model, inputs: Sequence[Input], truncate: bool) -> list[Item]:
    try:
        items = model.prepare(inputs, truncate)
    except FewshardError:
        raise
    except Exception as error:
        logger.exception("%s: preparing %d inputs failed", model.info.name, len(inputs))
        raise InternalError(f"the model failed to prepare the inputs ({type(error).__name__})") from error
    assert len(items) == len(inputs), f"{len(items)} items from {len(inputs)} inputs. This is a bug."
    return items
