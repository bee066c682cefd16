"""Changes of models on their way from a request to the launcher, and back."""

import asyncio

import pytest

from fewshard_serve.errors import ChangeRefused, NotFound, NotReady
from fewshard_serve.rayserve.model_changes import ASK_S, HEARD_S, ChangeQueue


def run(work):
    async def main():
        return await asyncio.wait_for(work(ChangeQueue()), 60)

    return asyncio.run(main())


def test_a_change_is_made_once_and_its_outcome_is_the_answer():
    async def work(queue):
        queue.hear()
        asked = [asyncio.ensure_future(queue.make(*one)) for one in (("load", "a"), ("unload", "b"))]
        (first,), (second,) = await queue.next(), await queue.next()
        assert [(each.action, each.model) for each in (first, second)] == [("load", "a"), ("unload", "b")]
        queue.finish(second.number, "it is needed")
        queue.finish(first.number, "")
        queue.finish(99, "nobody has asked")
        await asked[0]
        with pytest.raises(ChangeRefused, match="b is not unloaded: it is needed"):
            await asked[1]

    run(work)


def test_who_asks_while_nothing_waits_gets_the_next_change():
    async def work(queue):
        queue.hear()
        waiting = asyncio.ensure_future(queue.next())
        await asyncio.sleep(0)
        asked = asyncio.ensure_future(queue.make("load", "a"))
        (change,) = await waiting
        queue.finish(change.number, "")
        await asked

    run(work)


def test_nothing_is_lost_when_the_launcher_asks_in_vain(monkeypatch):
    monkeypatch.setattr("fewshard_serve.rayserve.model_changes.ASK_S", 0.01)

    async def work(queue):
        assert await queue.next() == []
        asked = asyncio.ensure_future(queue.make("load", "a"))
        (change,) = await queue.next()
        queue.finish(change.number, "")
        await asked

    run(work)


def test_a_server_without_a_launcher_says_so():
    async def work(queue):
        with pytest.raises(NotFound, match="change that"):
            await queue.make("load", "a")

    run(work)
    assert ASK_S < HEARD_S, "a launcher that waits has been heard"


def test_a_caller_that_has_gone_takes_its_change_back_from_nobody():
    async def work(queue):
        queue.hear()
        asked = asyncio.ensure_future(queue.make("load", "a"))
        (change,) = await queue.next()
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        queue.finish(change.number, "")

    run(work)


def test_a_server_that_stops_answers_who_waits():
    async def work(queue):
        queue.hear()
        asked = asyncio.ensure_future(queue.make("load", "a"))
        asking = asyncio.ensure_future(queue.next())
        await asking
        waiting = asyncio.ensure_future(queue.next())
        await asyncio.sleep(0)
        queue.close()
        for each in (asked, queue.make("load", "b")):
            with pytest.raises(NotReady, match="the server stops"):
                await each
        assert await waiting == []

    run(work)
