"""Prepares inputs (tokenises, decodes images) off the event loop; the engine calls it for every request."""

import asyncio
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from fewshard_core.values import Input, Item
from fewshard_models.classifier.base import Classifier
from fewshard_models.errors import UnusableInput
from fewshard_serve.core import ANYBODY, Caller
from fewshard_serve.cpu_threads import available_cores
from fewshard_serve.engine.fair import FairQueue
from fewshard_serve.errors import InternalError, ServeError, UnusableItem

logger = logging.getLogger(__name__)

MAX_THREADS = 4


@dataclass(frozen=True, slots=True)
class _Job:
    model: Classifier
    inputs: Sequence[Input]
    truncate: bool
    items: Future[list[Item]]


class Preparer:
    """A small thread pool with a queue that is fair between callers, as the model's queue is.

    A few threads are enough, because tokenizers and image decoders release the GIL.
    """

    def __init__(self, num_threads: int | None = None) -> None:
        num_threads = num_threads or min(MAX_THREADS, available_cores())
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="fewshard-prepare")
        self._jobs: FairQueue[_Job] = FairQueue()
        self._lock = threading.Lock()

    async def prepare(
        self, model: Classifier, inputs: Sequence[Input], truncate: bool, caller: Caller = ANYBODY
    ) -> list[Item]:
        """Return one item per input, in order. Raises `UnusableItem`; `InternalError` if the model fails."""
        job = _Job(model, inputs, truncate, Future())
        with self._lock:
            self._jobs.push(caller, job, len(inputs))
        self._pool.submit(self._do_next)
        return await asyncio.wrap_future(job.items)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        while self._jobs:
            self._jobs.pop().items.cancel()

    def _do_next(self) -> None:
        """Called once per submitted job, but takes the job that is next in the fair queue."""
        with self._lock:
            job = self._jobs.pop()
        if not job.items.set_running_or_notify_cancel():
            return  # its caller has gone, or its deadline has passed
        try:
            job.items.set_result(_prepare(job.model, job.inputs, job.truncate))
        except Exception as error:  # noqa: BLE001  raised again where the job is awaited
            job.items.set_exception(error)


def _prepare(model: Classifier, inputs: Sequence[Input], truncate: bool) -> list[Item]:
    try:
        items = model.prepare(inputs, truncate)
    except UnusableInput as error:
        raise UnusableItem(error.index, error.reason) from error
    except ServeError:
        raise
    except Exception as error:
        logger.exception("%s: preparing %d inputs failed", model.info.name, len(inputs))
        raise InternalError(f"the model failed to prepare the inputs ({type(error).__name__})") from error
    assert len(items) == len(inputs), f"{len(items)} items from {len(inputs)} inputs. This is a bug."
    return items
