"""Measures how long a caller of short texts waits while others send the largest inputs that are allowed.

    fewshard serve zoo:sst2-dense zoo:cifar10-dense
    python benchmarks/large_inputs.py http://127.0.0.1:8000 --images cifar10-dense

Each load runs beside the same probes, in turn with times without load. Every caller has an address of its own
in 127.0.0.0/8, because callers are told apart by it.
"""

import argparse
import base64
import io
import json
import random
import statistics
import time
from collections import Counter
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import httpx
from PIL import Image

NUM_CALLERS = 4
LEAD_S = 1.0
"""How long callers send before the first probe."""
PROBES_PER_S = 50
LETTERS = "".join(random.Random(0).choices("abcdefgh", k=990_000))


@dataclass(frozen=True)
class Load:
    """A load by several callers: the model, and the inputs of each request."""

    name: str
    model: str
    inputs: list[Any]


def image() -> str:
    """A PNG of 25 megapixels and 3 KB, as base64."""
    file = io.BytesIO()
    Image.new("1", (5000, 5000)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def client(url: str, caller: int) -> httpx.Client:
    transport = httpx.HTTPTransport(local_address=f"127.0.0.{caller}")
    return httpx.Client(base_url=url, timeout=60, transport=transport)


def send(url: str, caller: int, load: Load, seconds: float) -> Counter[str]:
    """Send one request after the other; begin none after these seconds. Return the answers by status."""
    body = json.dumps({"inputs": load.inputs}).encode()
    headers = {"Content-Type": "application/json", "X-Request-Timeout-Ms": "5000"}
    answers: Counter[str] = Counter()
    give_up_at = time.monotonic() + seconds
    with client(url, caller) as own:
        while time.monotonic() < give_up_at:
            answer = own.post(f"/v2/models/{load.model}/classify", content=body, headers=headers)
            answers[str(answer.status_code)] += 1
            if answer.status_code == 429:
                time.sleep(min(float(answer.headers["Retry-After"]), 1.0))
    return answers


def probe(url: str, model: str, seconds: float) -> list[float]:
    """The milliseconds of each probe; infinity where it was not answered."""
    found = []
    with client(url, 9) as own:
        give_up_at = time.monotonic() + seconds
        while time.monotonic() < give_up_at:
            began_at = time.monotonic()
            answer = own.post(f"/v2/models/{model}/classify", json={"inputs": "a fine film"})
            took_s = time.monotonic() - began_at
            found.append(1000 * took_s if answer.status_code == 200 else float("inf"))
            time.sleep(max(0.0, 1 / PROBES_PER_S - took_s))
    return found


def under_load(
    pool: Executor, url: str, model: str, seconds: float, load: Load
) -> tuple[list[float], Counter[str]]:
    """The milliseconds of probes beside the load, and what its callers were answered."""
    callers = range(2, 2 + NUM_CALLERS)
    sending = [pool.submit(send, url, caller, load, seconds + LEAD_S) for caller in callers]
    time.sleep(LEAD_S)
    found = probe(url, model, seconds)
    return found, sum((each.result() for each in sending), Counter[str]())


def summary(found: list[float]) -> dict[str, float]:
    """Number, median, 99th percentile and share of the answers, in milliseconds."""
    ordered = sorted(found)
    answered = [ms for ms in found if ms != float("inf")]
    return {
        "num": len(found),
        "p50": statistics.median(ordered),
        "p99": ordered[int(0.99 * len(ordered))],
        "answered": len(answered) / len(found),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--probed", default="sst2-dense", help="the model that the short texts go to")
    parser.add_argument("--texts", nargs="*", default=["sst2-dense"], help="models that get large texts")
    parser.add_argument("--images", nargs="*", default=[], help="models that get large images")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    # Processes, because the probes must not wait for the senders' interpreter.
    with ProcessPoolExecutor(NUM_CALLERS, get_context("spawn")) as pool:
        measure(pool, options)


def measure(pool: Executor, options: argparse.Namespace) -> None:
    loads = [Load(f"1 text, {model}", model, [LETTERS]) for model in options.texts]
    loads += [Load(f"15 texts, {model}", model, [LETTERS] * 15) for model in options.texts]
    loads += [Load(f"20 images, {model}", model, [image()] * 20) for model in options.images]
    probe(options.url, options.probed, 2.0)
    for load in loads:
        ratios, answers = [], Counter[str]()
        for _ in range(options.repeats):
            alone = summary(probe(options.url, options.probed, options.seconds))
            found, answered = under_load(pool, options.url, options.probed, options.seconds, load)
            beside = summary(found)
            ratios.append(beside["p99"] / alone["p99"])
            answers += answered
            print(f"{load.name}: alone {alone}, beside {beside}", flush=True)
        said = f"p99 {statistics.median(ratios):.2f}x, callers got {dict(answers)}"
        print(f"{load.name}: {said}", flush=True)


if __name__ == "__main__":
    main()
