"""Carries the changes of models that requests ask for from the gateway to the process that makes them.

The gateway's replica holds a `ChangeQueue`; the launcher asks for the next change and answers each. A server
without a launcher (`serve deploy`, KubeRay) takes none.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from fewshard_serve.errors import ChangeRefused, NotFound, NotReady
from fewshard_serve.protocol.repository import Action

HEARD_S = 30.0
"""A launcher that has not asked for so long is none."""
ASK_S = 10.0
"""How long an asking launcher waits for a change."""


@dataclass(frozen=True, slots=True)
class ModelChange:
    """One model to load or unload."""

    number: int
    action: Action
    model: str


class ChangeQueue:
    """The changes that wait or are being made, on one event loop."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[ModelChange] = asyncio.Queue()
        self._outcomes: dict[int, asyncio.Future[str]] = {}
        self._num_asked = 0
        self._asked_at = -HEARD_S
        self._closed = asyncio.Event()

    async def make(self, action: Action, model: str) -> None:
        """Have a change made, and wait until it is.

        Raises `NotFound` if nobody makes changes here, `ChangeRefused` with the reason if it is not made, and
        `NotReady` if the server stops meanwhile.
        """
        if time.monotonic() - self._asked_at > HEARD_S:
            raise NotFound(
                "models cannot be loaded or unloaded by requests here: what describes this cluster's server, "
                "such as a RayService, does; change that"
            )
        if self._closed.is_set():
            raise _stopping()
        self._num_asked += 1
        change = ModelChange(self._num_asked, action, model)
        outcome = self._outcomes[change.number] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait(change)
        try:
            why_not = await outcome
        finally:
            del self._outcomes[change.number]
        if why_not:
            raise ChangeRefused(f"{model} is not {action}ed: {why_not}")

    def hear(self) -> None:
        """Note that there is a launcher."""
        self._asked_at = time.monotonic()

    async def next(self) -> Sequence[ModelChange]:
        """Return the changes that wait, after `ASK_S` at the latest. The launcher calls it, and again."""
        self.hear()
        getting = asyncio.ensure_future(self._waiting.get())
        closing = asyncio.ensure_future(self._closed.wait())
        try:
            await asyncio.wait((getting, closing), timeout=ASK_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            closing.cancel()
            if not getting.done():
                getting.cancel()
        self.hear()
        return [getting.result()] if getting.done() and not getting.cancelled() else []

    def finish(self, number: int, why_not: str) -> None:
        """Answer who has asked for the change. `why_not`: "" if it is made."""
        outcome = self._outcomes.get(number)
        if outcome is not None and not outcome.done():
            outcome.set_result(why_not)

    def close(self) -> None:
        """Refuse what waits and what comes: the server stops."""
        self._closed.set()
        for outcome in self._outcomes.values():
            if not outcome.done():
                outcome.set_exception(_stopping())


def _stopping() -> NotReady:
    return NotReady("the server stops; nothing is loaded or unloaded any more")
