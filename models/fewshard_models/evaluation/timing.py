"""Times models of one task side by side, alternating round by round; called by `comparison`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

from fewshard_core.values import Item
from fewshard_models.bench.measurement import Budget, Call, clock_for, interleaved
from fewshard_models.classifier.network import NetworkClassifier
from fewshard_models.devices import choose_device, choose_dtype
from fewshard_models.evaluation.tasks import Inputs


def dtype_name(device: str = "auto") -> str:
    """Return the number format for networks of random weights on that device, for which `load` has no say."""
    return choose_dtype(device=choose_device(device).name).name


BATCHES = (1, 8, 64)
BUDGET = Budget(seconds=10.0, min_rounds=15, max_rounds=300, warmups=3)


@dataclass(frozen=True, slots=True)
class BatchTime:
    """One forward pass of `batch` items, from prepared items to logits; medians over `rounds`.

    dense_ms: the dense model's median in the same rounds.
    low, high: quartiles of the speed-up over rounds.
    All three are None for a model timed without a dense one.
    """

    batch: int
    rounds: int
    median_ms: float
    p90_ms: float
    dense_ms: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def items_per_s(self) -> float:
        return self.batch / self.median_ms * 1e3

    @property
    def speedup(self) -> float | None:
        """The dense model's time over this one's."""
        return None if self.dense_ms is None else self.dense_ms / self.median_ms


def time_side_by_side(
    models: Mapping[str, NetworkClassifier],
    inputs: Inputs,
    dense: str | None,
    batches: Sequence[int] = BATCHES,
    budget: Budget = BUDGET,
) -> dict[str, list[BatchTime]]:
    """Return times of each model at each batch size. `dense` is the name of the reference.

    Every round gives each model the same inputs, taken in turn, so that text lengths follow the data.
    """
    items = {name: prepared(model, inputs) for name, model in models.items()}
    found: dict[str, list[BatchTime]] = {name: [] for name in models}
    device = next(iter(models.values())).device.type
    for batch in batches:
        calls = {name: _call(model, items[name], batch, len(models)) for name, model in models.items()}
        seconds = interleaved(calls, clock_for(device), budget)
        for name in models:
            found[name].append(_batch_time(batch, seconds[name], None if dense is None else seconds[dense]))
    return found


def prepared(model: NetworkClassifier, inputs: Inputs) -> list[Item]:
    """Return one item for each text or image."""
    return model.prepare([model.preprocessor.to_input(each) for each in inputs])


def _call(model: NetworkClassifier, items: Sequence[Item], batch: int, num_models: int) -> Call:
    """Return a function that runs the round's batch. Calls are numbered over all models of a round."""

    def call(number: int) -> None:
        start = number // num_models * batch
        model.run([items[row % len(items)] for row in range(start, start + batch)])

    return call


def _batch_time(batch: int, seconds: list[float], dense: list[float] | None) -> BatchTime:
    own = (batch, len(seconds), 1e3 * median(seconds), 1e3 * _p90(seconds))
    if dense is None:
        return BatchTime(*own)
    low, _, high = quantiles([theirs / ours for theirs, ours in zip(dense, seconds, strict=True)], n=4)
    return BatchTime(*own, 1e3 * median(dense), low, high)


def _p90(seconds: list[float]) -> float:
    return quantiles(seconds, n=10, method="inclusive")[-1]
