"""Times the exchange between shards on this machine, both ways, beside Gloo's own collectives.

Processes on the loopback; medians in milliseconds. `python benchmarks/exchange.py --shards 4 --hidden 384`
"""

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from fewshard_models.sharding.exchange import GlooExchange, Rendezvous, join_store, serve_store

ROUNDS, WARMUP = 60, 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 64, 256, 1024], help="tokens a shard")
    options = parser.parse_args()
    store, context = serve_store("127.0.0.1"), multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    shared = (store.port, options.shards, options.hidden, options.rows, results)
    shards = [context.Process(target=run, args=(rank, *shared)) for rank in range(options.shards)]
    for shard in shards:
        shard.start()
    print(as_markdown(results.get()))
    for shard in shards:
        shard.join()
    return 0


def run(rank: int, port: int, size: int, hidden: int, rows: Sequence[int], results: Any) -> None:
    """Run one shard. Rank 0 reports its measurements."""
    torch.set_num_threads(1)
    exchange = GlooExchange(join_store("127.0.0.1", port, 60), Rendezvous("bench", rank, size, timeout_s=60))
    found = []
    for count in rows:
        mine, all_rows = torch.randn(count, hidden), torch.randn(size * count, hidden)
        part = torch.empty(count, hidden)
        calls: list[Callable[[], object]] = [
            lambda mine=mine: exchange.all_gather(mine),
            lambda all_rows=all_rows: exchange.reduce_scatter(all_rows),
            lambda part=part, all_rows=all_rows: exchange._joined._reduce_scatter_base(part, all_rows).wait(),
        ]
        found.append((count, *(median_ms(call) for call in calls)))
    exchange.all_gather(torch.zeros(1))
    if rank == 0:
        results.put(found)


def median_ms(call: Callable[[], object]) -> float:
    times = []
    for _ in range(WARMUP + ROUNDS):
        started_at = time.perf_counter()
        call()
        times.append(time.perf_counter() - started_at)
    return 1000 * float(np.median(times[WARMUP:]))


def as_markdown(found: Sequence[tuple[float, ...]]) -> str:
    names = "tokens a shard", "all-gather", "way back", "Gloo's reduce-scatter"
    lines = [f"| {' | '.join(names)} |", "|" + " --- |" * len(names)]
    for count, *times in found:
        lines.append(f"| {count} | {' | '.join(f'{each:.2f}' for each in times)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
