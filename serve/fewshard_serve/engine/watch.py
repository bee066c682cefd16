"""Finds out whether a model answers anybody, so that one that does not is not ready; the engine feeds it.

Nothing is asked of a model that answers, or of which nobody asks anything. One that has failed, or has been
silent while requests wait, is asked its own probe input, over the same way as a request. That decides, so
that inputs which only their sender can bring a model to fail on make it not ready for nobody else.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from fewshard_serve.errors import DeadlineExceeded, ServeError, UnusableItem

logger = logging.getLogger(__name__)

LOOK_S = 1.0
"""How often the engine calls `look`."""
SILENT_S = 1.0
"""A model from which no answer came for so long, while requests were waiting, is asked its probe input."""


class Watch:
    """Watches one model. Only the event loop's thread uses it.

    problem: why the model answers nobody; "" while it answers.
    """

    def __init__(
        self,
        name: str,
        ask: Callable[[], Awaitable[None]],
        allowed_s: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`ask` asks the probe input and raises what a request would; `allowed_s` is how long it may take."""
        self.problem = ""
        self._name = name
        self._ask = ask
        self._allowed_s = allowed_s
        self._clock = clock
        self._can_ask = True
        self._has_failed = False
        self._quiet_since = clock()
        self._probing: asyncio.Task[None] | None = None

    def note_answer(self) -> None:
        """A request was answered, or refused because of its own inputs."""
        self._has_failed = False
        self._quiet_since = self._clock()
        if self.problem:
            logger.warning("%s answers again", self._name)
            self.problem = ""

    def note_failure(self) -> None:
        """A request failed, and not by its sender's fault."""
        self._has_failed = True

    def look(self, is_asked: bool) -> None:
        """Ask the probe input if there is reason to. `is_asked`: the model has something to answer."""
        if not is_asked and not self._has_failed and not self.problem:
            self._quiet_since = self._clock()
        is_silent = self._clock() - self._quiet_since >= SILENT_S
        has_reason = self._has_failed or is_silent or bool(self.problem)
        if has_reason and self._can_ask and self._probing is None:
            self._probing = asyncio.get_running_loop().create_task(self._probe())

    def close(self) -> None:
        """End the probe in progress."""
        if self._probing is not None:
            self._probing.cancel()

    async def _probe(self) -> None:
        allowed_s = self._allowed_s()
        try:
            async with asyncio.timeout(allowed_s):
                await self._ask()
        except UnusableItem:  # the model has looked at it
            self.note_answer()
        except (TimeoutError, DeadlineExceeded):
            self._tell(f"it has not answered a small input within {allowed_s:.0f} s")
        except ServeError as error:
            self._tell(str(error))
        except Exception:
            logger.exception("%s: its probe input cannot be made; it counts as ready", self._name)
            self._can_ask = False
            self.note_answer()
        else:
            self.note_answer()
        finally:
            self._probing = None

    def _tell(self, problem: str) -> None:
        if not self.problem:
            logger.error("%s answers nobody and is not ready: %s", self._name, problem)
        self.problem = f"it answers nobody: {problem}"
