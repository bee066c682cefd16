"""Finds the checkpoints of a folder, measures the new ones, and keeps one file for each result.

Called by `fewshard table2`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from fewshard_models.bench.measurement import Budget
from fewshard_models.card import load_card
from fewshard_models.classifier.load import load as load_classifier
from fewshard_models.devices import subnormals_flushed
from fewshard_models.errors import CheckpointError, DataError
from fewshard_models.evaluation.assessment import evaluate_model, weights_digest
from fewshard_models.evaluation.baselines import SYSTEMS
from fewshard_models.evaluation.comparison import timed
from fewshard_models.evaluation.result import Result, load, save
from fewshard_models.evaluation.timing import BUDGET

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Found:
    """A checkpoint whose card names a system of the table."""

    model: str
    seed: int
    directory: Path

    @property
    def task(self) -> str:
        return self.model.partition("-")[0]


@dataclass(frozen=True, slots=True)
class Asked:
    """What to measure.

    results: folder of the result files.
    again: also measure what has a result.
    times: measure times.
    limit: rows of each data set; None for all.
    budget: time for measuring times.
    """

    tier: str
    results: Path
    again: bool = False
    times: bool = True
    limit: int | None = None
    budget: Budget = BUDGET

    def file(self, found: Found) -> Path:
        return self.results / f"{found.model}-seed{found.seed}.json"


def find_checkpoints(folder: Path) -> list[Found]:
    """Return the checkpoints at most four levels below `folder` whose cards name a system of the table.

    Raises CheckpointError if the folder does not exist, or two checkpoints have the same system and seed.
    """
    if not folder.is_dir():
        raise CheckpointError(f"no folder {folder}; give the one that holds the checkpoints with --models")
    found: dict[tuple[str, int], Found] = {}
    for directory in _with_cards(folder):
        card = load_card(directory)
        name = "" if card is None else card.name.rpartition("/")[2]
        if card is None or name not in SYSTEMS:
            continue
        if other := found.get((name, card.seed)):
            raise CheckpointError(
                f"{other.directory} and {directory} both hold {name} of seed {card.seed}; "
                "give --models a folder with one of them"
            )
        found[name, card.seed] = Found(name, card.seed, directory)
    order = list(SYSTEMS)
    return sorted(found.values(), key=lambda each: (order.index(each.model), each.seed))


def _with_cards(folder: Path) -> list[Path]:
    patterns = ["/".join(["*"] * depth + ["card.json"]) for depth in range(5)]
    files = [file for pattern in patterns for file in sorted(folder.glob(pattern))]
    return [file.parent for file in files if (file.parent / "config.json").is_file()]


@subnormals_flushed()
def measure(checkpoints: Iterable[Found], asked: Asked, say: Say = lambda _text: None) -> None:
    """Measure checkpoints without a result of these weights. Models of a task and seed are timed together."""
    everything = list(checkpoints)
    for found in everything:
        _assess(found, asked, say)
    if asked.times:
        for task in dict.fromkeys(found.task for found in everything):
            of_task = [found for found in everything if found.task == task]
            for seed in dict.fromkeys(found.seed for found in of_task):
                _time(_group(of_task, seed), asked, say)


def _assess(found: Found, asked: Asked, say: Say) -> None:
    file = asked.file(found)
    if file.is_file() and not asked.again and _is_current(load(file), found, asked):
        return
    loaded = load_classifier(found.directory)
    save(evaluate_model(loaded, found.model, asked.tier, found.seed, asked.limit, say), file)


def _is_current(result: Result, found: Found, asked: Asked) -> bool:
    """Return whether the result is of the same weights and rows."""
    return result.limit == asked.limit and result.weights == weights_digest(found.directory)


def _group(of_task: list[Found], seed: int) -> list[Found]:
    """Return the models of a seed, with the dense model of the lowest seed if this seed has none."""
    group = [found for found in of_task if found.seed == seed]
    dense = [found for found in of_task if SYSTEMS[found.model].kind == "dense"]
    if dense and not any(found in dense for found in group):
        return [min(dense, key=lambda found: found.seed), *group]
    return group


def _time(group: list[Found], asked: Asked, say: Say) -> None:
    """Time a whole group in one run, if one of its models lacks times beside these dense weights."""
    results = {found: load(asked.file(found)) for found in group}
    dense = next((found for found in group if SYSTEMS[found.model].kind == "dense"), None)
    digest = None if dense is None else results[dense].weights
    if not asked.again and all(_is_timed(result, digest) for result in results.values()):
        return
    say(f"timing {', '.join(found.model for found in group)} side by side, seed {group[-1].seed}")
    models = {found.model: load_classifier(found.directory) for found in group}
    by_name = {found.model: results[found] for found in group}
    with_times = timed(by_name, models, None if dense is None else dense.model, asked.budget)
    for found in group:
        # A dense model of another seed was run only for comparison.
        if found.seed == group[-1].seed:
            save(with_times[found.model], asked.file(found))


def _is_timed(result: Result, dense: str | None) -> bool:
    return result.timings is not None and (dense is None or result.timings.dense == dense)


def load_results(folder: Path, tier: str) -> list[Result]:
    """Read all results of a folder, in the table's order. Raises DataError for a damaged or wrong file."""
    results = []
    for file in sorted(folder.glob("*.json")):
        result = load(file)
        if result.model not in SYSTEMS:
            raise DataError(
                f"{file} is of {result.model!r}, which the table does not know: {', '.join(SYSTEMS)}"
            )
        if result.tier != tier:
            raise DataError(f"{file} is of tier {result.tier!r}, not {tier!r}; give each tier its own folder")
        results.append(result)
    order = list(SYSTEMS)
    return sorted(results, key=lambda each: (order.index(each.model), each.seed))
