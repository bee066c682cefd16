"""Chooses how a checkpoint runs on this CPU, by timing it: its number format, threads, and tokens of a batch.

`load` calls it. Choices are kept by the shape of the checkpoint, so models of one shape are timed once.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate

import numpy as np
import torch

from fewshard_core.formats import FORMATS
from fewshard_core.values import Item
from fewshard_models.classifier.batching import CPU_BATCH_TOKENS, MAX_BATCH_ITEMS
from fewshard_models.classifier.network import NetworkClassifier
from fewshard_models.devices import subnormals_flushed
from fewshard_models.errors import CheckpointError
from fewshard_models.tuning.cache import tuning_cache
from fewshard_models.tuning.choice import BATCHES, Candidate, Measured, decide
from fewshard_models.tuning.kept import Shape, kept
from fewshard_models.tuning.product import measure_products
from fewshard_models.tuning.rounds import Run, time_batches

logger = logging.getLogger(__name__)

LoadIn = Callable[[str], NetworkClassifier]
"""Loads the checkpoint in a number format; raises CheckpointError if it cannot answer."""

LOAD_LIMIT_S, FORMATS_LIMIT_S, THREADS_LIMIT_S, BUDGET_LIMIT_S = 2.5, 1.2, 0.8, 0.5
QUIET = 0.7
"""The share of a core that one thread has on a machine that is quiet enough to compare numbers of threads."""
SERVER_CPU_S = 1e-3
"""What a server computes for each item beside the model (docs/log.md)."""
THREADS_PRICE = 1.1
"""Threads cost other processes their cores, so another way must be faster by this factor."""
MAX_STREAMS = 4
"""Python runs in one stream at a time, so more would wait for each other; above 2 not measured."""
MAX_PARAMETERS = 200_000_000
"""Larger networks are not loaded once for each format; a product decides."""
BUDGETS = (CPU_BATCH_TOKENS, CPU_BATCH_TOKENS // 2, 2 * CPU_BATCH_TOKENS)


def formats_of_cpu() -> list[str]:
    """Return the formats that this CPU multiplies in and that a cast makes, the most exact first."""
    return [each.name for each in FORMATS if each.is_cast and each.multiplies("cpu")]


def recalled_format(shape: Shape) -> Measured | None:
    """Return the measurement of a shape's formats; None if there is none yet."""
    return Measured.of_json(tuning_cache().recall(f"format {shape.text}"), formats_of_cpu())


def measured_format(shape: Shape, load_in: LoadIn, anew: bool = False) -> Measured:
    """Return the measurement of the formats, from the cache where it is there and not wanted `anew`.

    A product stands in for a network that is large, or that is loaded after much else was measured.
    Raises CheckpointError if the checkpoint can be used in no format.
    """
    names, found = formats_of_cpu(), None
    if shape.num_parameters <= MAX_PARAMETERS:
        found = kept(f"format {shape.text}", names, partial(_measure_formats, shape, load_in), anew)
    return found or _measured_product(names)


def _measured_product(names: Sequence[str]) -> Measured:
    cache, key = tuning_cache(), "product"
    with cache.alone():
        found = Measured.of_json(cache.recall(key), names)
        if found is None:
            with _one_thread(), torch.inference_mode():
                found = measure_products(names)
            cache.keep(key, found.as_json())
    return replace(found, reason=f"by one product, as the network was not timed; {found.reason}")


def _measure_formats(shape: Shape, load_in: LoadIn) -> Measured:
    names = formats_of_cpu()
    if len(names) == 1:
        return decide([Candidate(names[0], {})])
    with _one_thread(), torch.inference_mode():
        loaded = _load_all(names, load_in)
        if loaded is None:
            return _measured_product(names)
        models, dropped = loaded
        items = usual_items(next(iter(models.values())))
        dropped |= {name: told for name in models if (told := _departs(name, models, items))}
        runs = {name: runner(model, items) for name, model in models.items() if name not in dropped}
        with subnormals_flushed():
            rates = time_batches(runs, BATCHES, FORMATS_LIMIT_S) if runs else {}
    for name, why in dropped.items():
        logger.warning("%s is no candidate for %s: %s", name, shape.text, why)
    return decide([Candidate(name, rates.get(name, {}), dropped.get(name, "")) for name in names])


def _load_all(
    names: Sequence[str], load_in: LoadIn
) -> tuple[dict[str, NetworkClassifier], dict[str, str]] | None:
    """Return the models by format, and why the others cannot be used; None if loading takes too long.

    Raises CheckpointError if there is none.
    """
    end = time.monotonic() + LOAD_LIMIT_S
    models: dict[str, NetworkClassifier] = {}
    dropped: dict[str, str] = {}
    for name in names:
        if time.monotonic() > end:
            return None
        try:
            model = load_in(name)
            model.self_check()
            models[name] = model
        except CheckpointError as error:
            dropped[name], first = str(error), error
    if not models:
        raise first
    return models, dropped


def _departs(name: str, models: Mapping[str, NetworkClassifier], items: Sequence[Item]) -> str:
    """Return by how much a format's answers differ from fp32's, if by too much; "" otherwise.

    A card's golden answers have been compared already; this is for checkpoints without.
    """
    exact, model = models.get("fp32"), models[name]
    if exact is None or (model.checkpoint.card is not None and model.checkpoint.card.golden):
        return ""
    expected, found = (each.run(items[:8]).logits for each in (exact, model))
    tolerance = FORMATS[name].tolerance * max(1.0, float(np.abs(expected).max()))
    worst = float(np.abs(expected - found).max())
    return "" if worst <= tolerance else f"a logit is {worst:.3g} from fp32's, more than {tolerance:.2g}"


def usual_items(model: NetworkClassifier) -> list[Item]:
    """Return made-up items of usual sizes, as many as the largest batch that is timed."""
    return model.prepare(model.preprocessor.usual_inputs(BATCHES[-1]))


def runner(model: NetworkClassifier, items: Sequence[Item]) -> Run:
    """Return a function that runs a batch of so many of the items."""
    return lambda size: model.run([items[row % len(items)] for row in range(size)])


@dataclass(frozen=True, slots=True)
class Parallel:
    """So many passes at the same time, of so many threads each."""

    num_streams: int
    num_threads: int

    @property
    def name(self) -> str:
        if self.num_streams == 1:
            return str(self.num_threads)
        return f"{self.num_streams} streams of {self.num_threads}"


def ways(numbers: Sequence[int]) -> dict[str, Parallel]:
    """Return what is tried for these numbers of threads, by name: one pass at a time, or as many as fit.

    Streams leave a core to the server's other processes. On two cores, two streams were timed as faster and
    answered no more requests than one, and a single caller later (docs/log.md).
    """
    rest = max(numbers) - 1
    streams = [
        Parallel(rest // number, number) for number in sorted(numbers) if 1 < rest // number <= MAX_STREAMS
    ]
    return {each.name: each for each in [*(Parallel(1, number) for number in numbers), *streams]}


def measured_threads(
    shape: Shape, model: NetworkClassifier, numbers: Sequence[int], anew: bool = False
) -> Measured:
    """Return the measurement of `ways` for a loaded model, from the cache or by timing it.

    The first is taken where none is clearly faster. What threads cost the server's other processes counts.
    """
    names = list(ways(numbers))
    measure = partial(_measure_threads, model, numbers)
    found = kept(_threads_key(shape, model.info.dtype), names, measure, anew)
    return found or Measured(names[0], "not measured yet", tuple(Candidate(name, {}) for name in names))


def recalled_threads(shape: Shape, dtype: str, numbers: Sequence[int]) -> Measured | None:
    """Return the measurement of `ways` in a format; None if there is none yet."""
    return Measured.of_json(tuning_cache().recall(_threads_key(shape, dtype)), list(ways(numbers)))


def _threads_key(shape: Shape, dtype: str) -> str:
    """OpenMP's threads wait for each other in a way that the environment names."""
    return f"threads, one batch {os.environ.get('OMP_WAIT_POLICY', 'active')} {dtype} {shape.size_class}"


def _measure_threads(model: NetworkClassifier, numbers: Sequence[int]) -> Measured | None:
    """Return the comparison; None where other processes keep the cores busy, so that it would say nothing."""
    run = runner(model, usual_items(model))
    tried = {name: way for name, way in ways(numbers).items() if way.num_streams == 1 or model.can_overlap}
    with ExitStack() as stack:
        stack.enter_context(_one_thread())
        stack.enter_context(subnormals_flushed())
        runs = {name: stack.enter_context(_running(way, run)) for name, way in tried.items()}
        alone = time_batches(runs, BATCHES, THREADS_LIMIT_S, stopwatch=time.perf_counter)
        cpu = time_batches(runs, BATCHES, THREADS_LIMIT_S, stopwatch=time.process_time)
    if "1" in tried and alone["1"][1] < QUIET * cpu["1"][1]:
        return None
    candidates = []
    for name, way in ways(numbers).items():
        if name in tried:
            candidates.append(Candidate(name, _served(way, alone[name], cpu[name], max(numbers))))
        else:
            candidates.append(Candidate(name, {}, "its passes must not overlap"))
    return decide(candidates, " threads", THREADS_PRICE)


def _served(
    way: Parallel, alone: Mapping[int, float], cpu: Mapping[int, float], cores: int
) -> dict[int, float]:
    """Return `served_rates` of the runs of `_running`."""
    if way.num_threads == 1:
        # Streams of one thread do not wait for each other, so their CPU time tells how fast they are on cores
        # of their own. While a server starts, other processes have some of the cores.
        alone = {size: rate * min(size, way.num_streams) for size, rate in cpu.items() if size in alone}
    return served_rates(alone, cpu, cores)


@contextmanager
def _running(way: Parallel, run: Run) -> Iterator[Run]:
    """Yield a function that runs a batch, divided between the streams: as many callers wait in any way."""

    def one(size: int) -> None:
        torch.set_num_threads(way.num_threads)
        with torch.inference_mode():
            run(size)

    if way.num_streams == 1:
        yield one
        return
    with ThreadPoolExecutor(way.num_streams) as pool:
        yield lambda size: list(pool.map(one, _divided(size, way.num_streams)))


def _divided(size: int, num_streams: int) -> list[int]:
    shares = [size // num_streams + (number < size % num_streams) for number in range(num_streams)]
    return [share for share in shares if share]


def served_rates(alone: Mapping[int, float], cpu: Mapping[int, float], cores: int) -> dict[int, float]:
    """Return the items/s that a server reaches with a model on so many cores, for each size of a batch.

    alone: items/s of the model on a quiet machine. cpu: items per second of all its threads' CPU time. In
    batches the server is busy, and its own work for each item needs a core as well.
    """
    return {
        size: min(rate, cores / (1 / cpu[size] + SERVER_CPU_S)) if size > 1 else rate
        for size, rate in alone.items()
        if size in cpu
    }


def measured_budget(shape: Shape, model: NetworkClassifier, anew: bool = False) -> Measured:
    """Return the measurement of how many tokens of a batch pay, from the cache or by timing it."""
    key, names = f"tokens {model.info.dtype} {shape.size_class}", [str(budget) for budget in BUDGETS]
    return kept(key, names, partial(_measure_budget, model), anew) or _no_budget("not measured yet")


def _measure_budget(model: NetworkClassifier) -> Measured:
    items = usual_items(model)
    tokens = sum(item.num_tokens for item in items) / len(items)
    if not tokens:
        return _no_budget("its items have no tokens")
    run = runner(model, items)
    sizes = {str(budget): min(MAX_BATCH_ITEMS, max(1, int(budget / tokens))) for budget in BUDGETS}
    with _one_thread(), torch.inference_mode(), subnormals_flushed():
        rate = time_batches({"": run}, BATCHES[-1:], 0.1)[""][BATCHES[-1]]
        runs = {name: _batch_of(run, size) for name, size in _first_affordable(sizes, rate).items()}
        if len(runs) < 2:
            return _no_budget("larger batches take too long to be timed")
        batches_per_s = time_batches(runs, (1,), BUDGET_LIMIT_S)
    rates = {name: {sizes[name]: found[1] * sizes[name]} for name, found in batches_per_s.items()}
    return decide([Candidate(name, rates.get(name, {})) for name in sizes], unit=" tokens", price=1.2)


def _first_affordable(sizes: Mapping[str, int], items_per_s: float) -> dict[str, int]:
    """Return the first sizes that may run three times each within twice the limit."""
    totals = accumulate(3 * size / items_per_s for size in sizes.values())
    return {name: sizes[name] for name, s in zip(sizes, totals, strict=True) if s < 2 * BUDGET_LIMIT_S}


def _no_budget(why: str) -> Measured:
    return Measured(str(BUDGETS[0]), why, tuple(Candidate(str(each), {}) for each in BUDGETS))


def _batch_of(run: Run, size: int) -> Run:
    """Return a run whose one item is a batch of `size` items."""
    return lambda _: run(size)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
