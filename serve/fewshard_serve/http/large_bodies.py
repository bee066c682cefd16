"""What large bodies may take of one process: bytes and turns, shared fairly between callers.

A body counts from the moment its bytes arrive, packed or not, until its request is answered. Small ones are
not counted: admission bounds their number.
"""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import ParamSpec, TypeVar

from fewshard_serve.core import Caller
from fewshard_serve.errors import Overloaded
from fewshard_serve.fairness import Budget, Share, Turns
from fewshard_serve.protocol.limits import Limits

LARGE_BYTES = 64 * 1024
"""From this size on, unpacking or parsing a body could block the event loop for a millisecond or more."""
TIMES_LARGEST = 4
"""The bytes of all large bodies together, in bodies of `max_body_bytes`."""
MAX_AT_ONCE = 1
"""Large bodies that are unpacked or parsed at a time: parsing takes many times the memory of a body, and the
interpreter's lock, so that two would take no less time than one after the other."""
MAX_TURN_WAIT_S = 2.5
"""The longest time that a large body should wait for its turn, as long as work should wait for the model."""
RETRY_AFTER_S = 1.0

_FULL = "the server has as many large bodies to read as it takes at a time"
_RETRY = f"retry in {RETRY_AFTER_S:.1f} s, or send smaller ones"

ParamsT = ParamSpec("ParamsT")
ResultT = TypeVar("ResultT")


class LargeBodies:
    """The large bodies of one process, on its event loop."""

    def __init__(self, limits: Limits = Limits()) -> None:  # noqa: B008  it is frozen
        self.budget = Budget(TIMES_LARGEST * limits.max_body_bytes)
        self._turns = Turns(MAX_AT_ONCE, MAX_AT_ONCE)

    def share(self, caller: Caller) -> "BodyShare":
        """What one request will hold."""
        return BodyShare(Share(self.budget, caller))

    async def work(
        self,
        caller: Caller,
        num_bytes: int,
        work: Callable[ParamsT, ResultT],
        *args: ParamsT.args,
        **kwargs: ParamsT.kwargs,
    ) -> ResultT:
        """Call `work`: at once, or in another thread and in the caller's turn if it processes many bytes.

        Raises `Overloaded` if the turn does not come soon.
        """
        if num_bytes < LARGE_BYTES:
            return work(*args, **kwargs)
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(MAX_TURN_WAIT_S):
                    await stack.enter_async_context(self._turns.taken(caller, num_bytes))
            except TimeoutError:
                raise Overloaded(f"{_FULL}; {_RETRY}", RETRY_AFTER_S) from None
            return await asyncio.to_thread(work, *args, **kwargs)


class BodyShare:
    """The bytes that one request holds; none while its body is small."""

    __slots__ = ("_share",)

    def __init__(self, share: Share) -> None:
        self._share = share

    def hold(self, num_bytes: int) -> None:
        """Hold so many from now on. Raises `Overloaded` if there is no room for more."""
        wanted = num_bytes if num_bytes > LARGE_BYTES else 0
        if wanted != self._share.amount and not self._share.resize(wanted):
            raise Overloaded(f"{_FULL}; {_RETRY}", RETRY_AFTER_S)

    def release(self) -> None:
        """Give all bytes back."""
        self._share.release()
