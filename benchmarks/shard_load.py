"""The callers of `shard_kills`, and what they saw."""

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from chaos import Expected

GIVE_UP_S = 60.0
NUM_USERS = 16
"""So many callers find out what a model sustains."""
HALT = re.compile(r"go on after a halt of ([0-9.]+) s")
LABELS = ("negative", "positive")


@dataclass(frozen=True, slots=True)
class Answer:
    """One request.

    sent_at: monotonic seconds.
    seconds: time until the answer.
    outcome: "ok", "wrong", a status or the name of an error.
    """

    sent_at: float
    seconds: float
    outcome: str

    @property
    def ended_at(self) -> float:
        return self.sent_at + self.seconds


def figures(answers: Sequence[Answer], since: float, rate: float, whole_s: float | None) -> dict[str, Any]:
    """Return a row's figures, of the answers that came after the deed.

    slowest_s: the slowest answer. silent_s: the longest time without any answer.
    """
    after = [one for one in answers if one.ended_at >= since]
    ended = sorted([since, *(one.ended_at for one in after)])
    return {
        "sent": len(after),
        "failed": sum(one.outcome not in ("ok", "wrong") for one in after),
        "wrong": sum(one.outcome == "wrong" for one in after),
        "slowest_s": round(max((one.seconds for one in after), default=0.0), 3),
        "silent_s": round(max(np.diff(ended), default=0.0), 3),
        "whole_s": None if whole_s is None else round(whole_s, 1),
        "rate": round(rate, 1),
    }


def halted_s(said: str) -> float | None:
    """Return the longest halt that has ended, by the leaders' words: from where one noticed a loss until
    the survivors could run the next batch."""
    return max(map(float, HALT.findall(said)), default=None)


class Callers:
    """Asks the model for one sentence at a time, and compares the answers."""

    def __init__(self, url: str, model: str, expected: Expected) -> None:
        self._url = f"{url}/v2/models/{model}/classify"
        self._expected = expected
        self._num_sent = 0

    async def __aenter__(self) -> "Callers":
        self._client = httpx.AsyncClient(timeout=GIVE_UP_S, limits=httpx.Limits(max_connections=None))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def steady(self, rate: float, stop: asyncio.Event) -> list[Answer]:
        """Send `rate` requests a second until the event, and wait for their answers."""
        tasks, due_at = [], time.monotonic()
        while not stop.is_set():
            tasks.append(asyncio.create_task(self._one()))
            due_at += 1 / rate
            await asyncio.sleep(max(0.0, due_at - time.monotonic()))
        return await asyncio.gather(*tasks)

    async def capacity(self, seconds: float) -> float:
        """Return the answers a second that so many callers get, each of whom waits for its last one."""
        end = time.monotonic() + seconds

        async def user() -> int:
            count = 0
            while time.monotonic() < end:
                count += (await self._one()).outcome == "ok"
            return count

        return sum(await asyncio.gather(*(user() for _ in range(NUM_USERS)))) / seconds

    async def _one(self) -> Answer:
        text, sent_at = self._num_sent % len(self._expected.texts), time.monotonic()
        self._num_sent += 1
        try:
            body = {"inputs": self._expected.texts[text], "raw_scores": True}
            answer = await self._client.post(self._url, json=body)
            outcome = str(answer.status_code)
            if answer.status_code == httpx.codes.OK:
                outcome = "ok" if self._expected.fits(text, scores(answer.json())) else "wrong"
        except (httpx.HTTPError, ValueError, KeyError) as error:
            outcome = type(error).__name__
        return Answer(sent_at, time.monotonic() - sent_at, outcome)


def scores(answer: dict[str, Any]) -> np.ndarray:
    """Return the logits of the first item, in the order of `LABELS`."""
    found = {each["label"]: each["score"] for each in answer["predictions"][0]}
    return np.array([found[label] for label in LABELS], np.float32)
