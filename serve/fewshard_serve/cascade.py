"""A cascade of models that acts as one model: each stage gets only the items of which the last was not sure.

Viola, Jones: "Rapid Object Detection using a Boosted Cascade of Simple Features", CVPR 2001; for thresholds
on a classifier's own confidence: Wang et al.: "IDK Cascades", UAI 2018. It does not depend on Ray;
`rayserve.cascade_replica` serves it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fewshard_core.activation import activate
from fewshard_core.values import ModelInfo, ProblemType, label_order
from fewshard_serve.core import Caller, Classified, PredictionRequest, Timings
from fewshard_serve.errors import DeadlineExceeded, NotReady
from fewshard_serve.protocol.stats import ModelStatistics
from fewshard_serve.protocol.tasks import TASKS

STARTING = "its stages are not loaded yet"


class AskModel(Protocol):
    """Classifies with a model by name, wherever it runs."""

    async def __call__(self, model: str, request: PredictionRequest, /) -> Classified: ...


@dataclass(frozen=True, slots=True)
class Spent:
    """The cost of one request.

    items: the number of items that each stage answered.
    macs: the MACs of all stages, according to the models' cards; 0 if a card lacks them.
    macs_of_last: the MACs that the last stage alone would have taken; 0 if a card lacks them.
    """

    items: dict[str, int]
    macs: float
    macs_of_last: float


class Observe(Protocol):
    """Called for each answered request."""

    def __call__(self, classified: Classified, spent: Spent) -> None: ...


class Cascade:
    """Several models as one.

    accept_above: for each stage except the last, the confidence from which its answer is accepted.
    ask: classifies with one of the stages.
    observe: called for each answered request.
    """

    def __init__(
        self, name: str, stages: Sequence[str], accept_above: Sequence[float], ask: AskModel, observe: Observe
    ) -> None:
        assert len(accept_above) == len(stages) - 1, "one threshold for each stage but the last"
        self.info = _unknown(name)
        self.stats = ModelStatistics()
        self.not_ready_reason = STARTING
        self._stages = tuple(stages)
        self._accept_above = (*accept_above, 0.0)
        self._ask = ask
        self._observe = observe
        self._infos: tuple[ModelInfo, ...] = ()

    @property
    def ready(self) -> bool:
        return not self.not_ready_reason

    def set_stages(self, infos: Sequence[ModelInfo | None]) -> None:
        """Set the descriptions of the stages; None for a stage that accepts no requests now."""
        known = [info for info in infos if info is not None]
        missing = [name for name, info in zip(self._stages, infos, strict=True) if info is None]
        reason = f"no answer from {', '.join(missing)}" if missing else _misfit(known)
        if not reason:
            self._infos = tuple(known)
            self.info = _joint_info(self.info.name, self._infos, self._accept_above[:-1])
        self.not_ready_reason = reason

    @property
    def room(self) -> None:
        return None

    def check_room(self, caller: Caller) -> None:
        """Nothing to check: each stage has its own admission control."""

    async def classify(self, request: PredictionRequest) -> Classified:
        """Classify. Raises as the stages do: an error for one item fails the whole request."""
        if not self.ready:
            raise NotReady(f"{self.info.name} is not ready: {self.not_ready_reason}")
        run = _Run(self._infos, len(request.inputs))
        deadline = None if request.timeout_s is None else time.monotonic() + request.timeout_s
        for info, accept_above in zip(self._infos, self._accept_above, strict=True):
            if len(run.left) == 0:
                break
            left = [request.inputs[index] for index in run.left.tolist()]
            part = replace(request, inputs=left, timeout_s=_left_s(deadline), is_of_cascade=True)
            run.take(info, await self._ask(info.name, part), accept_above)
        self._observe(run.classified(), run.spent())
        return run.classified()

    def experts(self) -> dict[str, Any] | None:
        return None


class _Run:
    """The state of one request in the stages. `left`: the indices of the items without an answer."""

    def __init__(self, infos: Sequence[ModelInfo], num_items: int) -> None:
        self._infos = infos
        self._labels = infos[-1].labels
        self._logits = np.zeros((num_items, len(self._labels)), np.float32)
        self._stage_of: list[str] = [""] * num_items
        self._asked = {info.name: 0 for info in infos}
        self._num_tokens = 0
        self._is_degraded = False
        self._timings = Timings(0.0, 0.0, 0.0)
        self.left = np.arange(num_items)

    def take(self, info: ModelInfo, answer: Classified, accept_above: float) -> None:
        """Apply a stage's answer to all remaining items; those above the threshold are done."""
        sure = confidence(activate(answer.logits, info.problem_type), info.problem_type) >= accept_above
        sure |= info is self._infos[-1]
        done = self.left[sure]
        order = label_order(info.labels, self._labels)
        assert order is not None, "stages were found to fit"
        self._logits[done] = answer.logits[sure][:, order]
        for index in done.tolist():
            self._stage_of[index] = info.name
        self._asked[info.name] += len(self.left)
        self._num_tokens += answer.num_tokens
        self._is_degraded |= answer.is_degraded
        self._timings = _added(self._timings, answer.timings)
        self.left = self.left[~sure]

    def classified(self) -> Classified:
        stages = tuple(self._stage_of)
        return Classified(self._logits, self._num_tokens, self._timings, self._is_degraded, stages)

    def spent(self) -> Spent:
        items = {info.name: self._stage_of.count(info.name) for info in self._infos}
        macs = [_macs(info) for info in self._infos]
        if 0.0 in macs:
            return Spent(items, 0.0, 0.0)
        costs = [cost * self._asked[info.name] for cost, info in zip(macs, self._infos, strict=True)]
        return Spent(items, sum(costs), macs[-1] * len(self._stage_of))


def confidence(scores: NDArray[np.float32], problem_type: ProblemType) -> NDArray[np.float32]:
    """The confidence [N] of a model, from 0 to 1, from its scores [N, C] after activation.

    It is the best label's score. With independent labels, it is the confidence of the least certain label.
    """
    if problem_type == "multi_label_classification" or scores.shape[1] == 1:
        chosen: NDArray[np.float32] = np.maximum(scores, 1 - scores).min(axis=1)
        return chosen
    best: NDArray[np.float32] = scores.max(axis=1)
    return best


def _macs(info: ModelInfo) -> float:
    """The MACs of one item, from the model's card; 0.0 if the card lacks them."""
    macs = info.card.get("macs")
    return float(macs) if isinstance(macs, int | float) else 0.0


def _misfit(infos: Sequence[ModelInfo]) -> str:
    """Why these models cannot form a cascade; "" if they can."""
    last = infos[-1]
    for info in infos:
        if info.task != last.task:
            return f"{info.name} classifies {TASKS.of(info).plural} and {last.name} {TASKS.of(last).plural}"
        if not TASKS.of(info).labels_items:
            return f"{info.name} labels tokens, and a cascade is of models that label whole items"
        if info.problem_type != last.problem_type or info.problem_type == "regression":
            return f"{info.name} is {info.problem_type} and {last.name} {last.problem_type}"
        if label_order(info.labels, last.labels) is None:
            return f"{info.name} and {last.name} have different labels, or equal names in another order"
    return ""


def _joint_info(name: str, infos: Sequence[ModelInfo], accept_above: Sequence[float]) -> ModelInfo:
    stages = [info.name for info in infos]
    return replace(
        infos[-1],
        name=name,
        kind="cascade",
        architecture=" > ".join(stages),
        dtype="+".join(dict.fromkeys(info.dtype for info in infos)),
        device="+".join(dict.fromkeys(info.device for info in infos)),
        max_tokens=min(info.max_tokens for info in infos),
        card={"stages": stages, "accept_above": list(accept_above)},
    )


def _unknown(name: str) -> ModelInfo:
    return ModelInfo(name, "text", "cascade", (), "single_label_classification", "", "", "", max_tokens=0)


def _left_s(deadline: float | None) -> float | None:
    if deadline is None:
        return None
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise DeadlineExceeded("the deadline passed between two stages; send less or wait")
    return left_s


def _added(first: Timings, second: Timings) -> Timings:
    return Timings(
        first.preprocess_s + second.preprocess_s,
        first.queue_s + second.queue_s,
        first.infer_s + second.infer_s,
    )
