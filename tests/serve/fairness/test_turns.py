"""Few at a time, fewer of one caller, and nobody waits behind a whole backlog."""

import asyncio

import pytest

from fewshard_serve.core import Caller
from fewshard_serve.fairness import Turns

A, B = Caller("a"), Caller("b")


class Worker:
    """One who takes a turn and keeps it until `done` is set."""

    def __init__(self, turns, caller, began):
        self.done = asyncio.Event()
        self.task = asyncio.create_task(self._work(turns, caller, began))

    async def _work(self, turns, caller, began):
        async with turns.taken(caller):
            began.append(self)
            await self.done.wait()


async def settled():
    for _ in range(10):
        await asyncio.sleep(0)


def test_one_caller_takes_its_own_turns_alone_and_another_does_not_wait_for_its_backlog():
    async def run():
        turns, began = Turns(limit=2, limit_of_one=1), []
        of_a = [Worker(turns, A, began) for _ in range(50)]
        await settled()
        assert began == of_a[:1]
        of_b = Worker(turns, B, began)
        await settled()
        assert began == [of_a[0], of_b]
        for each in [*of_a, of_b]:
            each.done.set()
        await asyncio.gather(*(each.task for each in [*of_a, of_b]))
        assert began == [of_a[0], of_b, *of_a[1:]]

    asyncio.run(run())


def test_those_who_give_up_take_no_turn_and_lose_none():
    async def run():
        turns, began = Turns(limit=1, limit_of_one=1), []
        first, second, third = (Worker(turns, A, began) for _ in range(3))
        await settled()
        second.task.cancel()
        first.done.set()
        await settled()
        assert began == [first, third]
        fourth = Worker(turns, A, began)
        third.done.set()
        await settled()
        fourth.task.cancel()  # while it holds its turn
        with pytest.raises(asyncio.CancelledError):
            await fourth.task
        fifth = Worker(turns, A, began)
        fifth.done.set()
        await fifth.task
        assert began == [first, third, fourth, fifth]

    asyncio.run(run())


def test_who_gives_up_in_the_moment_of_its_turn_gives_it_on():
    async def run():
        turns, began = Turns(limit=1, limit_of_one=1), []
        first, second, third = (Worker(turns, A, began) for _ in range(3))
        await settled()
        first.task.add_done_callback(lambda _: second.task.cancel())
        first.done.set()
        third.done.set()
        await third.task
        assert began[-1] is third

    asyncio.run(run())
