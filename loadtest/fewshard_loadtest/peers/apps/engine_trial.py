"""How fast and how right an engine is in each number format, without a server; runs where the engine is.

Reads {"settings": […], "texts": […]} from stdin and prints, for each setting, the texts a second
at batches of 32 (the median of several rounds in turn) and the labels that it gives.
"""

import json
import random
import statistics
import sys
import time
from typing import Any

import engine

BATCH, ROUNDS, ROUND_S, SEED = 32, 3, 0.7, 0


def main() -> None:
    """Load every setting that can run here, label the texts, then measure all in turn."""
    given = json.load(sys.stdin)
    texts = given["texts"]
    found: list[dict[str, Any]] = []
    loaded = []
    for settings in given["settings"]:
        try:
            classify = engine.load(settings)
            labels = [label for label, _ in classify(texts)]
        except Exception as error:  # noqa: BLE001 - each engine has errors of its own
            found.append({"error": f"{type(error).__name__}: {error}"[:300]})
            continue
        answer = {"labels": labels, "rates": []}
        found.append(answer)
        loaded.append((classify, answer["rates"]))
    rng = random.Random(SEED)
    batches = [rng.choices(texts, k=BATCH) for _ in range(64)]
    for _ in range(ROUNDS):
        for classify, rates in loaded:
            rates.append(rate(classify, batches))
    for answer in found:
        if "rates" in answer:
            answer["per_s"] = statistics.median(answer.pop("rates"))
    json.dump(found, sys.stdout)


def rate(classify: engine.Classify, batches: list[list[str]]) -> float:
    """Texts a second over about ROUND_S."""
    num_batches, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < ROUND_S:
        classify(batches[num_batches % len(batches)])
        num_batches += 1
    return num_batches * BATCH / (time.perf_counter() - begun)


if __name__ == "__main__":
    main()
