"""What sharding costs while nothing happens: one process and a group of shards in turns; see --help.

Both serve the same checkpoint through the engine, without HTTP, to users who each wait for their last answer.
A group of N shards has N threads, and so has the one process. Prints the requests a second, and the CPU
time of all processes for each request, which other work on the machine hardly changes.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import psutil
import torch
from chaos import MODEL, sentences

from fewshard_core.values import TextInput
from fewshard_loadtest.peers.machine import markdown_table
from fewshard_models.classifier.base import Classifier
from fewshard_serve.backends.load import load_model
from fewshard_serve.backends.sharded_text import load_sharded_model
from fewshard_serve.core import PredictionRequest
from fewshard_serve.engine import Engine
from fewshard_serve.engine.settings import EngineSettings
from fewshard_serve.group.launcher import ProcessLauncher
from fewshard_serve.group.settings import ExpertsSettings

WARM_UP_S = 2.0


async def rate(model: Classifier, num_users: int, seconds: float) -> tuple[float, float]:
    """Return the answers a second, and the milliseconds of CPU time of each."""
    engine = Engine([model], {MODEL: EngineSettings()}, lambda stats: None)
    texts, num_answers = [TextInput(text) for text in sentences(200)], 0

    async def user(number: int) -> None:
        nonlocal num_answers
        while True:
            await engine.classify(MODEL, PredictionRequest([texts[number % len(texts)]]))
            num_answers += 1
            number += num_users

    users = [asyncio.create_task(user(number)) for number in range(num_users)]
    await asyncio.sleep(WARM_UP_S)
    before, cpu_s, began_at = num_answers, cpu_seconds(), time.monotonic()
    await asyncio.sleep(seconds)
    passed_s, used_s, count = time.monotonic() - began_at, cpu_seconds() - cpu_s, num_answers - before
    for one in users:
        one.cancel()
    await asyncio.gather(*users, return_exceptions=True)
    await engine.drain(10.0)
    return count / passed_s, 1000 * used_s / max(count, 1)


def cpu_seconds() -> float:
    """Return the CPU time of this process and its children."""
    own = psutil.Process()
    times = [one.cpu_times() for one in (own, *own.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


@contextmanager
def loaded(shards: int, threads: int, path: str, dtype: str) -> Iterator[Classifier]:
    """Load the checkpoint over so many shards; over none: in this process with so many threads."""
    if shards:
        model: Classifier = load_sharded_model(
            MODEL, path, "cpu", dtype, ExpertsSettings(shards), ProcessLauncher()
        )
    else:
        model = load_model(MODEL, path, "cpu", dtype)
        torch.set_num_threads(threads)
    try:
        yield model
    finally:
        model.close()


def main() -> int:
    options = _parse()
    found: dict[int, list[tuple[float, float]]] = {0: [], options.shards: []}
    for _ in range(options.rounds):
        for shards, some in found.items():
            with loaded(shards, options.shards, options.path, options.dtype) as model:
                some.append(asyncio.run(rate(model, options.users, options.seconds)))
    rows = [_row(shards, some, found[0]) for shards, some in found.items()]
    print(markdown_table(("", "requests/s", "CPU ms a request", "of one process"), rows))
    print(f"\n{options.users} users, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    if options.out:
        options.out.write_text(json.dumps({str(shards): some for shards, some in found.items()}) + "\n")
    return 0


def _row(shards: int, some: Sequence[tuple[float, float]], whole: Sequence[tuple[float, float]]) -> list[str]:
    rates, costs = ([each[place] for each in some] for place in (0, 1))
    share = median(rates) / median(each[0] for each in whole)
    name = f"{shards} shards" if shards else "one process"
    return [name, _told(rates, 1), _told(costs, 2), f"{share:.2f}"]


def _told(values: Sequence[float], digits: int) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--path", default="zoo:sst2-moe", help="an MoE checkpoint (zoo:sst2-moe)")
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--users", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each run (10)")
    parser.add_argument("--rounds", type=int, default=3, help="each of both so often (3)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
