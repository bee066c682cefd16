"""Evaluates checkpoints of any names side by side; called by `fewshard evaluate --full`."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from fewshard_models.bench.measurement import Budget
from fewshard_models.bench.report import machine
from fewshard_models.classifier.load import load
from fewshard_models.classifier.network import NetworkClassifier
from fewshard_models.devices import subnormals_flushed
from fewshard_models.evaluation.assessment import evaluate_model
from fewshard_models.evaluation.result import Result, Timings
from fewshard_models.evaluation.tasks import held_out
from fewshard_models.evaluation.timing import BUDGET, time_side_by_side

NUM_TIMED_INPUTS = 872


@subnormals_flushed()
def judge_together(
    directories: Mapping[str, Path],
    limit: int | None = None,
    say: Callable[[str], None] = lambda _text: None,
    budget: Budget = BUDGET,
) -> list[Result]:
    """Return one result for each checkpoint, by its given name.

    Checkpoints of one task are timed alternately in one run. Speed-ups are against the first dense one among
    them.
    """
    loaded = {name: load(directory) for name, directory in directories.items()}
    results = {name: _judged(each, name, limit, say) for name, each in loaded.items()}
    for task in dict.fromkeys(each.info.task for each in loaded.values()):
        models = {name: each for name, each in loaded.items() if each.info.task == task}
        say(f"timing {', '.join(models)} side by side")
        results |= timed({name: results[name] for name in models}, models, _dense(results, models), budget)
    return list(results.values())


def timed(
    results: Mapping[str, Result], models: Mapping[str, NetworkClassifier], dense: str | None, budget: Budget
) -> dict[str, Result]:
    """Return the results with times from one run of all `models`, which share one task."""
    first = next(iter(models.values()))
    inputs = held_out(first.info.task, NUM_TIMED_INPUTS).inputs
    times = time_side_by_side(models, inputs, dense, budget=budget)
    digest, about = None if dense is None else results[dense].weights, machine(first.device.type)
    return {
        name: replace(result, timings=Timings(tuple(times[name]), tuple(models), digest, about))
        for name, result in results.items()
    }


def _judged(loaded: NetworkClassifier, name: str, limit: int | None, say: Callable[[str], None]) -> Result:
    card = loaded.checkpoint.card
    tier, seed = ("", 0) if card is None else (card.recipe.partition("/")[0], card.seed)
    return evaluate_model(loaded, name, tier, seed, limit, say)


def _dense(results: Mapping[str, Result], models: Mapping[str, NetworkClassifier]) -> str | None:
    return next((name for name in models if _is_dense(results[name], models[name])), None)


def _is_dense(result: Result, loaded: NetworkClassifier) -> bool:
    stated = result.card.get("kind")
    return bool(stated == "dense" if stated else not getattr(loaded.network.config, "num_experts", 0))
