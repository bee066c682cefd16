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
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
from PIL import Image

NUM_CALLERS = 4
PROBES_PER_S = 50
LETTERS = "".join(random.Random(0).choices("abcdefgh", k=990_000))


@dataclass
class Load:
    """A load by several callers: the model, the request's inputs, and what the callers were answered."""

    name: str
    model: str
    inputs: list[Any]
    answers: Counter[str] = field(default_factory=Counter)


def image() -> str:
    """A PNG of 25 megapixels and 3 KB, as base64."""
    file = io.BytesIO()
    Image.new("1", (5000, 5000)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def client(url: str, caller: int) -> httpx.Client:
    transport = httpx.HTTPTransport(local_address=f"127.0.0.{caller}")
    return httpx.Client(base_url=url, timeout=60, transport=transport)


def send(url: str, caller: int, load: Load, stop: threading.Event) -> None:
    body = json.dumps({"inputs": load.inputs}).encode()
    with client(url, caller) as own:
        while not stop.is_set():
            answer = own.post(
                f"/v2/models/{load.model}/classify",
                content=body,
                headers={"Content-Type": "application/json", "X-Request-Timeout-Ms": "5000"},
            )
            load.answers[str(answer.status_code)] += 1
            if answer.status_code == 429:
                stop.wait(min(float(answer.headers["Retry-After"]), 1.0))


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


def under_load(url: str, model: str, seconds: float, load: Load) -> list[float]:
    stop = threading.Event()
    threads = [
        threading.Thread(target=send, args=(url, caller, load, stop)) for caller in range(2, 2 + NUM_CALLERS)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    try:
        return probe(url, model, seconds)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


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
    loads = [Load(f"1 text, {model}", model, [LETTERS]) for model in options.texts]
    loads += [Load(f"15 texts, {model}", model, [LETTERS] * 15) for model in options.texts]
    loads += [Load(f"20 images, {model}", model, [image()] * 20) for model in options.images]
    probe(options.url, options.probed, 2.0)
    for load in loads:
        ratios = []
        for _ in range(options.repeats):
            alone = summary(probe(options.url, options.probed, options.seconds))
            beside = summary(under_load(options.url, options.probed, options.seconds, load))
            ratios.append(beside["p99"] / alone["p99"])
            print(f"{load.name}: alone {alone}, beside {beside}", flush=True)
        said = f"p99 {statistics.median(ratios):.2f}x, callers got {dict(load.answers)}"
        print(f"{load.name}: {said}", flush=True)


if __name__ == "__main__":
    main()
