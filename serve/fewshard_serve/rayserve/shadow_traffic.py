"""Sends a share of a model's traffic to a second model too and compares the answers. Clients never see them.

`Replica` creates a `Shadow` for each model that has one. Without Ray.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fewshard_core.activation import activate, assigned
from fewshard_core.values import ModelInfo, label_order
from fewshard_serve.config import ShadowConfig
from fewshard_serve.core import Caller, Classified, PredictionRequest
from fewshard_serve.errors import ServeError
from fewshard_serve.protocol.tasks import TASKS
from fewshard_serve.rayserve.handles import HostCalls

logger = logging.getLogger(__name__)

MAX_INFLIGHT = 4
"""Concurrent requests to a shadow. Further ones are skipped, so that a slow shadow delays nothing."""
STATES_TIMEOUT_S = 2.0
CALLER = Caller("shadow")
"""Shadow requests queue as one caller among others, with their own fair share."""


@dataclass(frozen=True, slots=True)
class ShadowModel:
    """How a shadow is reached.

    info: returns its description; None while it is unknown.
    classify: sends it a request.
    """

    info: Callable[[], Awaitable[ModelInfo | None]]
    classify: Callable[[PredictionRequest], Awaitable[Classified]]


Observe = Callable[[str, str, str, int], None]
"""Arguments: model, shadow, outcome (agree, disagree, failed or skipped), number of items."""


class Shadow:
    """The shadow of one model, on the event loop of its host."""

    def __init__(
        self, settings: ShadowConfig, info: ModelInfo, shadow: ShadowModel, observe: Observe
    ) -> None:
        self._settings = settings
        self._info = info
        self._shadow = shadow
        self._observe = observe
        self._random = random.Random()
        self._tasks: set[asyncio.Task[None]] = set()

    def follow(self, request: PredictionRequest, answer: Classified) -> None:
        """Sample the request. If it is chosen, send it to the shadow in the background. Returns at once."""
        if self._random.random() >= self._settings.share:
            return
        if len(self._tasks) >= MAX_INFLIGHT:
            self._count("skipped", len(request.inputs))
            return
        task = asyncio.create_task(self._compare(request, answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Cancel the comparisons in progress."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _compare(self, request: PredictionRequest, answer: Classified) -> None:
        num_items = len(request.inputs)
        try:
            info = await self._shadow.info()
            if info is None or not is_comparable(self._info, info):
                self._count("skipped", num_items)
                return
            other = await self._shadow.classify(replace(request, timeout_s=None, caller=CALLER))
            num_agreeing = int(agreeing(self._info, answer, info, other).sum())
        except ServeError as error:
            logger.debug("the shadow %s did not answer: %s", self._settings.model, error)
            self._count("failed", num_items)
        except Exception:  # any error on the way to another host
            logger.exception("the shadow %s failed", self._settings.model)
            self._count("failed", num_items)
        else:
            self._count("agree", num_agreeing)
            self._count("disagree", num_items - num_agreeing)

    def _count(self, outcome: str, num_items: int) -> None:
        self._observe(self._info.name, self._settings.model, outcome, num_items)


def shadow_elsewhere(name: str, app: str, calls: HostCalls) -> ShadowModel:
    """Return the model of that name, served by another application, as a shadow."""

    async def info() -> ModelInfo | None:
        answers = await calls.all(app, "model_states", timeout_s=STATES_TIMEOUT_S)
        return next((entry.info for some in answers for entry in some if entry.name == name), None)

    async def classify(request: PredictionRequest) -> Classified:
        answer = await calls.one(app, "classify_for_gateway", name, request)
        if isinstance(answer, ServeError):
            raise answer
        assert isinstance(answer, Classified)
        return answer

    return ShadowModel(info, classify)


def is_comparable(first: ModelInfo, second: ModelInfo) -> bool:
    """Return whether both models have the same labels, in any order, and label whole items."""
    if not (TASKS.of(first).labels_items and TASKS.of(second).labels_items):
        return False
    is_same = first.problem_type == second.problem_type and first.problem_type != "regression"
    return is_same and label_order(second.labels, first.labels) is not None


def agreeing(
    info: ModelInfo, answer: Classified, other_info: ModelInfo, other: Classified
) -> NDArray[np.bool_]:
    """Return whether both models agree on each item, bool [num_items].

    They agree if the best label is equal, or for several labels all that reach the first one's thresholds.
    """
    order = label_order(other_info.labels, info.labels)
    assert order is not None, "the models were found to be comparable"
    scores = activate(answer.logits, info.problem_type), activate(other.logits[:, order], info.problem_type)
    if info.has_independent_labels:
        first, second = (assigned(each, info) for each in scores)
        same: NDArray[np.bool_] = (first == second).all(axis=1)
    else:
        same = scores[0].argmax(axis=1) == scores[1].argmax(axis=1)
    return same
