"""Lets a new version of a model take over by steps, and gives it up by itself; `replica` makes a `Canary`.

Requests that one version has answered are given to the other too, in the background, and `canary.Judge`
compares the answers. A request that the new version fails is answered by the old one. Without Ray.
"""

import asyncio
import json
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fewshard_core.values import Input, ModelInfo, TextInput
from fewshard_serve.canary import CanaryConfig, Judge, Pair
from fewshard_serve.core import Caller, Classified, PredictionRequest
from fewshard_serve.errors import (
    ConfigError,
    DeadlineExceeded,
    InternalError,
    NotReady,
    Overloaded,
    ServeError,
)
from fewshard_serve.http.versions import Version, VersionedModel
from fewshard_serve.metrics import Metrics
from fewshard_serve.rayserve.shadow_traffic import agreeing

logger = logging.getLogger(__name__)

STEPS = (0.01, 0.05, 0.25, 0.5)
"""The new version's parts of the requests, one after the other, before it gets all."""
MAX_INFLIGHT = 4
"""Requests that wait for the other version's answer. Further ones are not compared."""
CALLER = Caller("canary")


class Canary:
    """The canary of one model, on the event loop of its replica.

    truth: the right label of a text, by its place; texts that are not there have none.
    """

    def __init__(
        self, settings: CanaryConfig, model: VersionedModel, metrics: Metrics, truth: Mapping[str, int]
    ) -> None:
        (self._old,) = (model.versions[version] for version in model.answering)
        self._new = model.versions[settings.to]
        self._settings, self._model, self._metrics, self._truth = settings, model, metrics, truth
        self._judge = Judge(settings.judge)
        self._step = 0
        self._random = random.Random()
        self._tasks: set[asyncio.Task[None]] = set()
        model.begin_canary(self, self._old.version, self._new.version)
        self._shift(STEPS[0], "started", f"waits for requests: 0 of {settings.step_requests:,} compared")

    async def classify(self, version: Version, request: PredictionRequest) -> Classified:
        """Answer a request that falls to one of the versions."""
        try:
            answer = await version.classify(request)
        except InternalError:
            if version.version != self._new.version:
                raise
            self._add("failed", Pair(1.0, 0.0, 0.0))
            return await self._old.classify(request)
        self._follow(version, request, answer)
        return answer

    async def close(self) -> None:
        """Cancel the comparisons in progress."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _follow(self, version: Version, request: PredictionRequest, answer: Classified) -> None:
        is_other = request.caller.is_probing or request.is_of_cascade
        if is_other or not self._is_on or self._random.random() >= self._settings.share:
            return
        if len(self._tasks) >= MAX_INFLIGHT:
            self._metrics.observe_canary(*self._names, "skipped")
            return
        task = asyncio.create_task(self._compare(version, request, answer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _compare(self, version: Version, request: PredictionRequest, answer: Classified) -> None:
        is_new = version.version == self._new.version
        other = self._old if is_new else self._new
        try:
            second = await other.classify(replace(request, timeout_s=None, caller=CALLER))
        except (Overloaded, DeadlineExceeded):
            self._metrics.observe_canary(*self._names, "skipped")
        except (InternalError, NotReady):
            if not is_new:  # what the old one fails says nothing about the new one
                self._add("failed", Pair(1.0, 0.0, 0.0))
        except ServeError as error:
            logger.debug("%s: version %s did not answer: %s", other.name, other.version, error)
        else:
            old, new = (second, answer) if is_new else (answer, second)
            pair = self._paired(request, old, new)
            self._add("agree" if pair.flips == 0 else "flip", pair)

    def _paired(self, request: PredictionRequest, old: Classified, new: Classified) -> Pair:
        info = self._old.info
        flips = 1.0 - float(agreeing(info, old, self._new.info, new).mean())
        places = np.array([self._place(one) for one in request.inputs])
        known, harm = places >= 0, None
        if known.any():
            is_right = [answer.logits[known].argmax(axis=1) == places[known] for answer in (old, new)]
            harm = float(is_right[0].mean() - is_right[1].mean())
        return Pair(flips, old.timings.infer_s, new.timings.infer_s, harm)

    def _place(self, one: Input) -> int:
        """Return the place of an input's right label; -1 if it is not known."""
        return self._truth.get(one.text, -1) if isinstance(one, TextInput) else -1

    def _add(self, outcome: str, pair: Pair) -> None:
        if not self._is_on:
            return
        self._metrics.observe_canary(*self._names, outcome)
        why, judge = self._judge.add(pair), self._judge
        if why:
            self._step = len(STEPS) + 1
            self._shift(0.0, "rolled_back", f"is given up after {judge.num_pairs:,} requests: {why}")
        elif judge.num_pairs >= (self._step + 1) * self._settings.step_requests:
            self._step += 1
            after = f"after {judge.num_pairs:,} requests that both versions have answered"
            if self._is_on:
                self._shift(STEPS[self._step], "raised", after)
            else:
                self._shift(1.0, "promoted", after)

    @property
    def _is_on(self) -> bool:
        return self._step < len(STEPS)

    @property
    def _names(self) -> tuple[str, str]:
        return self._new.name, self._new.version

    def _shift(self, weight: float, step: str, why: str) -> None:
        self._model.shift(weight)
        self._metrics.observe_canary_step(*self._names, step, weight)
        level = logging.WARNING if step == "rolled_back" else logging.INFO
        logger.log(level, "canary %s of %s gets %g of the requests, %s", *reversed(self._names), weight, why)


def read_truth(path: str, info: ModelInfo) -> dict[str, int]:
    """Read the right labels of texts: a JSON object with `text` and `label` a line. Raises `ConfigError`."""
    if not path:
        return {}
    truth: dict[str, int] = {}
    try:
        for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
            if line.strip():
                text, place = _read_line(line, info.labels, f"{path}:{number}")
                truth[text] = place
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"labels_from cannot be read: {error}") from None
    if not truth:
        raise ConfigError(f"labels_from: {path} has no line")
    return truth


def _read_line(line: str, labels: Sequence[str], at: str) -> tuple[str, int]:
    try:
        row = json.loads(line)
        text, label = row["text"], row["label"]
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f'{at}: a line must be {{"text": "…", "label": "…"}}') from None
    if not isinstance(text, str) or label not in labels:
        raise ConfigError(f"{at}: no label {label!r}; there are: {', '.join(labels)}")
    return text, labels.index(label)
