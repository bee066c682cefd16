"""All figures of a report as plain values, from a run's raw samples. `page` and `tables` present them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fewshard_loadtest.cost.prices import Price, price_of
from fewshard_loadtest.report import answers as judged
from fewshard_loadtest.report.costs import Energy, Measured, Money, energy_of, money_of, per_item
from fewshard_loadtest.report.latency import Latency, Moment, Point, latency_of, moments_of, point_of
from fewshard_loadtest.report.speedups import Realised, realised_of
from fewshard_loadtest.report.statistics import mean_interval
from fewshard_loadtest.results_store import LoadRun, Run
from fewshard_loadtest.scenario import EnergyPart, FleetPart, PricePart, SloPart


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Accuracy of the answers under load; `changed`: items with a different answer later in the run."""

    share: judged.Share
    by_class: dict[str, judged.Share]
    changed: int
    paired: judged.Paired | None = None


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """Figures of one model. Rates are predictions per second; None or empty means not measured.

    dense: name of the dense model to compare with.
    sustained, is_limited: rate within the SLO, and whether the generator limited it.
    saturated: rate in a closed loop with many users.
    alone, at_slo: latency with a single user, and at the sustained rate.
    cpu_ms, infer_ms: CPU time, and time in the model, per prediction.
    no_accuracy: what is wrong with the true labels, in words; "" if nothing, or if the payload has none.
    curve, moments: latency by load, and over time by load.
    experts: share of rows by layer and expert.
    """

    name: str
    task: str
    kind: str
    dense: str | None
    card: dict[str, Any]
    sustained: Measured | None
    is_limited: bool
    saturated: Measured | None
    alone: Latency | None
    at_slo: Latency | None
    accuracy: Accuracy | None
    no_accuracy: str
    cpu_ms: float | None
    memory_mib: float | None
    infer_ms: float | None
    mean_batch: float | None
    energy: Energy | None
    money: Money | None
    realised: Realised | None
    curve: tuple[Point, ...]
    moments: dict[str, tuple[Moment, ...]]
    experts: dict[str, dict[str, float]]
    num_requests: int
    errors: dict[str, int]


@dataclass(frozen=True, slots=True)
class Figures:
    """All values of a report."""

    run: Run
    slo: SloPart
    price: Price | None
    fleet: FleetPart
    energy: EnergyPart
    models: tuple[ModelFigures, ...]

    def model(self, name: str | None) -> ModelFigures | None:
        """The model with this name, or None."""
        return next((model for model in self.models if model.name == name), None)


def figures_of(run: Run, folder: Path) -> Figures:
    """Compute all figures from the samples in `folder`. Raises `ScenarioError` for an unlisted price."""
    scenario = run.scenario
    price = price_of(PricePart.model_validate(scenario["price"]) if scenario["price"] else None)
    base = Figures(
        run=run,
        slo=SloPart.model_validate(scenario["slo"]),
        price=price,
        fleet=FleetPart.model_validate(scenario["fleet"]),
        energy=EnergyPart.model_validate(scenario["energy"]),
        models=(),
    )
    alone = [_ModelReader(base, folder, name).read() for name in run.models]
    by_name = {model.name: model for model in alone}
    return replace(base, models=tuple(_beside_dense(run, folder, model, by_name) for model in alone))


class _ModelReader:
    """Computes one model's figures."""

    def __init__(self, figures: Figures, folder: Path, name: str) -> None:
        self.figures = figures
        self.run = figures.run
        self.folder = folder
        self.name = name
        self.legs = [leg for leg in self.run.legs if name in leg.result.plan.models]
        self.own = [leg for leg in self.legs if leg.model == name]
        self.config = self.run.models[name]

    def read(self) -> ModelFigures:
        curve = self._curve()
        sustained, batches = self._sustained()
        kept, saturated = self._legs_at_slo(), self._saturated_legs()
        busiest = saturated or kept
        cpu_ms = per_item(kept or saturated, lambda leg: leg.usage.cpu_s, self.name)
        energy = energy_of(kept or saturated, self.name, self.figures.energy)
        infer_ms = per_item(busiest, lambda leg: leg.counters[self.name].infer_s, self.name)
        batched = sum(leg.counters[self.name].batches for leg in busiest)
        items = sum(leg.counters[self.name].items for leg in busiest)
        memory = [leg.usage.memory_mib for leg in self.own if leg.usage.memory_mib is not None]
        errors: dict[str, int] = {}
        for leg in self.own:
            for error, count in leg.result.errors.items():
                errors[error] = errors.get(error, 0) + count
        return ModelFigures(
            name=self.name,
            task=str(self.config["task"]),
            kind=str(self.config["kind"]),
            dense=self._dense(),
            card=dict(self.config.get("card", {})),
            sustained=sustained,
            is_limited=self.name in self.run.limited,
            saturated=self._saturated(saturated),
            alone=latency_of(self.run, self.folder, self._alone_legs(), self.name),
            at_slo=latency_of(self.run, self.folder, kept, self.name),
            accuracy=self._accuracy(),
            no_accuracy=judged.mismatch(truth_names(self.run, self.name), _labels(self.run, self.name))
            or _remark(self.run, self.name),
            cpu_ms=None if cpu_ms is None else 1000 * cpu_ms,
            memory_mib=max(memory) if memory else None,
            infer_ms=1000 * infer_ms if infer_ms else None,
            mean_batch=items / batched if batched else None,
            energy=energy,
            money=self._money(sustained, batches, curve),
            realised=None,
            curve=curve,
            moments=self._moments(),
            experts=self._experts(),
            num_requests=sum(leg.result.num_requests for leg in self.own),
            errors=errors,
        )

    def _dense(self) -> str | None:
        """The first dense model of the same task, in the scenario's order; None if it is this model."""
        same = [name for name, config in self.run.models.items() if config["task"] == self.config["task"]]
        dense = next((name for name in same if self.run.models[name]["kind"] == "dense"), None)
        return None if dense == self.name else dense

    def _searches(self) -> list[tuple[str, int]]:
        """Index and items per request of each search."""
        loads = self.run.scenario["loads"]
        return [(place, loads[int(place)]["items"]) for place in self.run.sustained]

    def _sustained(self) -> tuple[Measured | None, dict[int, float]]:
        """Rate found by the first search, and mean rates of all searches by items per request."""
        means: dict[int, float] = {}
        first: Measured | None = None
        for number, (place, items) in enumerate(self._searches()):
            rates = [items * rate for rate in self.run.sustained[place].get(self.name, []) if rate]
            if rates:
                measured = Measured(*mean_interval(rates), tuple(rates))
                means[items] = measured.mean
                first = measured if number == 0 else first
        return first, means

    def _legs_at_slo(self) -> list[LoadRun]:
        """The runs at exactly the rate that each repeat of the first search found."""
        for place, _ in self._searches()[:1]:
            rates = self.run.sustained[place].get(self.name, [])
            return [
                leg
                for leg in self.own
                if leg.kind == "search"
                and leg.is_kept
                and leg.load == int(place)
                and leg.repeat < len(rates)
                and leg.rate == rates[leg.repeat]
            ]
        return []

    def _closed(self) -> list[LoadRun]:
        return [leg for leg in self.own if leg.kind == "closed" and leg.result.plan.num_items == 1]

    def _alone_legs(self) -> list[LoadRun]:
        return [leg for leg in self._closed() if leg.result.plan.num_users == 1]

    def _saturated_legs(self) -> list[LoadRun]:
        """The closed-loop runs with the most users, if these are eight or more."""
        most = max((leg.result.plan.num_users for leg in self._closed()), default=0)
        return [leg for leg in self._closed() if leg.result.plan.num_users == most >= 8]

    def _saturated(self, legs: Sequence[LoadRun]) -> Measured | None:
        rates = tuple(leg.result.answered_rps for leg in legs)
        return Measured(*mean_interval(rates), rates) if rates else None

    def _curve(self) -> tuple[Point, ...]:
        legs = [leg for leg in self.own if leg.rate is not None and leg.result.plan.num_items == 1]
        points = [point for leg in legs if (point := point_of(self.run, self.folder, leg))]
        return tuple(sorted(points, key=lambda point: point.rate))

    def _accuracy(self) -> Accuracy | None:
        given = judged.answers_of(self.run.recordings(self.folder, self.legs), self.name)
        truth = truth_names(self.run, self.name)
        share = judged.accuracy(given, truth)
        if share is None:
            return None
        return Accuracy(share, judged.by_class(given, truth), given.num_changed)

    def _money(
        self, sustained: Measured | None, batches: dict[int, float], curve: Sequence[Point]
    ) -> Money | None:
        figures = self.figures
        if figures.price is None or sustained is None:
            return None
        return money_of(figures.price, figures.fleet, figures.slo, sustained, batches, curve)

    def _moments(self) -> dict[str, tuple[Moment, ...]]:
        """Course over time of each load whose rate changes; first repeat only."""
        shaped = [leg for leg in self.legs if leg.result.plan.stages and leg.repeat == 0]
        return {
            f"{leg.kind} {leg.load}": moments
            for leg in shaped
            if (moments := moments_of(self.run, self.folder, leg, self.name))
        }

    def _experts(self) -> dict[str, dict[str, float]]:
        """Share of each layer's rows that each expert received, over all runs."""
        rows: dict[str, dict[str, float]] = {}
        for leg in self.legs:
            for layer, experts in leg.counters[self.name].experts.items():
                own = rows.setdefault(layer, {})
                for expert, number in experts.items():
                    own[expert] = own.get(expert, 0.0) + number
        return {
            layer: {expert: number / sum(experts.values()) for expert, number in experts.items()}
            for layer, experts in rows.items()
            if sum(experts.values())
        }


def truth_names(run: Run, model: str) -> list[str]:
    """The true label of each item of the model's payload, in the model's terms; empty if unknown."""
    truth = run.truth.get(str(run.models[model]["task"]), {"names": [], "labels": []})
    names = judged.in_terms_of(truth["names"], _labels(run, model))
    return [names[label] for label in truth["labels"]]


def _labels(run: Run, model: str) -> list[str]:
    return [str(label) for label in run.models[model].get("labels", [])]


def _remark(run: Run, model: str) -> str:
    remark = run.truth.get(str(run.models[model]["task"]), {}).get("remark", "")
    return f"no accuracy, because {remark}" if remark else ""


def _beside_dense(
    run: Run, folder: Path, model: ModelFigures, by_name: dict[str, ModelFigures]
) -> ModelFigures:
    dense = by_name.get(model.dense or "")
    if dense is None:
        return model
    accuracy = model.accuracy
    if accuracy is not None and dense.accuracy is not None:
        truth = truth_names(run, model.name)
        both = [
            judged.answers_of(
                run.recordings(folder, [leg for leg in run.legs if name in leg.result.plan.models]), name
            )
            for name in (model.name, dense.name)
        ]
        accuracy = replace(accuracy, paired=judged.paired(both[0], both[1], truth))
    return replace(model, accuracy=accuracy, realised=realised_of(model, dense))
