"""CPU time of tokeniser and model for one text, in Fewshard's own code without a server.

    model_cost.py DIR DTYPE SECONDS SIZE... < texts.json

Runs in Fewshard's environment. Prints, for each batch size, the CPU milliseconds per text of an otherwise
idle process. It uses one thread: more would add the time in which they wait for each other, which is not a
cost of the model.
"""

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch

from fewshard_core.values import TextInput
from fewshard_serve.backends.load import load_model

WARM_UP_BATCHES = 5
SEED = 0


def main() -> None:
    """Read the arguments and texts, measure each batch size, and print the costs as JSON."""
    directory, dtype, seconds, *sizes = sys.argv[1:]
    torch.set_num_threads(1)
    texts = [TextInput(text) for text in json.load(sys.stdin)]
    model = load_model("bench", str(Path(directory).resolve()), device="cpu", dtype=dtype)
    rng = random.Random(SEED)
    costs = {}
    for size in dict.fromkeys(sizes):
        for _ in range(WARM_UP_BATCHES):
            model.run(model.prepare(rng.choices(texts, k=int(size))))
        costs[size] = cpu_ms(model, texts, int(size), float(seconds), rng)
    json.dump(costs, sys.stdout)


def cpu_ms(model: Any, texts: list[TextInput], size: int, seconds: float, rng: random.Random) -> float:
    """CPU milliseconds per text, over random batches for `seconds`."""
    num_texts, until, begun = 0, time.monotonic() + seconds, time.process_time()
    while time.monotonic() < until:
        model.run(model.prepare(rng.choices(texts, k=size)))
        num_texts += size
    return 1000 * (time.process_time() - begun) / num_texts


if __name__ == "__main__":
    main()
