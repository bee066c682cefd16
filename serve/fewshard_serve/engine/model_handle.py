"""One model of the engine, with all that decides what is asked of it."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from fewshard_models.classifier.base import PIXELS_PER_UNIT, Classifier
from fewshard_serve.core import Caller
from fewshard_serve.engine.admission import Admission
from fewshard_serve.engine.preparing_cost import UNIT_S
from fewshard_serve.engine.scheduled_model import ScheduledModel
from fewshard_serve.engine.settings import EngineSettings
from fewshard_serve.engine.watch import Watch
from fewshard_serve.errors import Overloaded, TooLarge
from fewshard_serve.fairness import Budget


@dataclass(frozen=True, slots=True)
class ModelHandle:
    """A model with its queue and its admission control.

    heavy: the budget for preparing heavy inputs.
    watch: knows whether the model answers.
    """

    lane: ScheduledModel
    admission: Admission
    heavy: Budget
    deadline_s: float
    watch: Watch

    def check_heavy(self, cost: int, caller: Caller) -> None:
        """Raise `TooLarge` or `Overloaded` if heavy inputs of this cost are refused now."""
        name = self.lane.model.info.name
        if cost > self.heavy.limit:
            raise TooLarge(
                f"preparing the request's large inputs would cost {cost} (a character of text counts 1, so "
                f"do {PIXELS_PER_UNIT} pixels) and {name!r} admits at most {self.heavy.limit} at a time "
                "(admission.max_heavy_cost); send fewer or smaller ones"
            )
        if not self.heavy.has_room(cost, caller):
            wait_s = max(self.admission.retry_after_s(), self.heavy.used * UNIT_S)
            raise Overloaded(
                f"{name!r} prepares as many large inputs as it admits; retry in {wait_s:.1f} s, or send "
                "smaller ones",
                wait_s,
            )

    @property
    def num_queued_items(self) -> int:
        return len(self.lane.queue)

    @property
    def num_inflight_items(self) -> int:
        return self.admission.num_items


def handle(
    model: Classifier, settings: Mapping[str, EngineSettings], probe: Callable[[], Awaitable[None]]
) -> ModelHandle:
    """Return the handle of a model. `probe` asks it its probe input, as `Watch` needs it."""
    name = model.info.name
    own = settings.get(name, EngineSettings())
    limits = own.admission
    admission = Admission(
        name,
        limits.max_items,
        limits.max_tokens,
        min_items=limits.min_items,
        target_wait_s=limits.target_wait_s,
    )
    lane, budget = ScheduledModel(model, own.batching), Budget(limits.max_heavy_cost)

    def allowed_s() -> float:
        return lane.pace.allowed_s(0) if lane.pace.is_measured else lane.pace.min_s

    return ModelHandle(lane, admission, budget, limits.deadline_s, Watch(name, probe, allowed_s))
