"""Asks a server of 8-bit checkpoints for a whole test set, each item alone and in batches of mixed sizes.

Labels must be equal but for ties: items whose two largest logits are closer than the largest difference seen
between both ways. Needs FEWSHARD_DATA, and checkpoints that `fewshard quantize` made:

    .venv/bin/python benchmarks/int8_served.py runs/sst2-dense-int8 runs/cifar10-dst-int8
"""

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray

from fewshard_loadtest.peers.machine import cpu_slug, machine, markdown_table
from fewshard_loadtest.peers.processes import serving
from fewshard_models.classifier.load import task_of
from fewshard_models.evaluation.tasks import HeldOut, held_out

MAX_BATCH = 48
HEADER = (
    "checkpoint",
    "items",
    "accuracy alone",
    "accuracy in batches",
    "labels that differ",
    "ties",
)
HEADER += ("largest difference of a logit",)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", type=Path, nargs="+")
    parser.add_argument("--limit", type=int, help="items of each test set (default: all)")
    parser.add_argument("--port", type=int, default=8125)
    parser.add_argument("--out", type=Path, help="default: docs/results/cpu/ and this CPU's name")
    options = parser.parse_args()
    folder = options.out or Path("docs/results/cpu") / cpu_slug()
    folder.mkdir(parents=True, exist_ok=True)
    url, log = f"http://127.0.0.1:{options.port}", folder / "int8_served.log"
    command = [str(Path(sys.executable).with_name("fewshard")), "serve", *map(str, options.paths)]
    command += ["--port", str(options.port), "--grpc-port", str(options.port + 1)]
    with serving(command, f"{url}/v2/health/ready", log):
        found = [compared(url, path, options.limit) for path in options.paths]
    log.unlink()
    table = markdown_table(HEADER, [[str(each[name]) for name in HEADER] for each in found])
    written = {"command": ["python", *sys.argv], "machine": machine(), "checkpoints": found}
    (folder / "int8_served.json").write_text(json.dumps(written, indent=1) + "\n")
    (folder / "int8_served.md").write_text(table + "\n")
    print(table)
    return int(any(each["labels that differ"] != each["ties"] for each in found))


def compared(url: str, path: Path, limit: int | None) -> dict[str, object]:
    """Ask for every item in both ways, and compare."""
    rows: HeldOut = held_out(task_of(path), limit)
    with httpx.Client(base_url=url, timeout=60) as client:
        info = client.get(f"/v2/models/{path.name}/config").raise_for_status().json()
        assert info["dtype"] == "int8", info["dtype"]
        wanted = label_numbers(info["labels"], rows)
        alone = logits(client, path.name, rows, [[row] for row in range(len(rows.labels))], at_once=1)
        beside = logits(client, path.name, rows, mixed(len(rows.labels)), at_once=4)
    worst = float(np.abs(alone - beside).max())
    differ = alone.argmax(1) != beside.argmax(1)
    ordered = np.sort(alone, axis=1)
    ties = differ & (ordered[:, -1] - ordered[:, -2] <= 2 * worst)
    figures = (
        path.name,
        len(rows.labels),
        f"{np.mean(alone.argmax(1) == wanted):.2%}",
        f"{np.mean(beside.argmax(1) == wanted):.2%}",
        int(differ.sum()),
        int(ties.sum()),
        float(f"{worst:.2g}"),
    )
    return dict(zip(HEADER, figures, strict=True))


def label_numbers(names: Sequence[str], rows: HeldOut) -> NDArray[np.int64]:
    """Return each item's label by its place among the model's labels."""
    places = [list(names).index(name) for name in rows.names]
    return np.array(places)[rows.labels]


def mixed(count: int) -> list[list[int]]:
    """Divide all rows, in random order, into batches of 2 to `MAX_BATCH`."""
    draw, order = random.Random(0), list(range(count))
    draw.shuffle(order)
    batches = []
    while order:
        size = draw.randint(2, MAX_BATCH)
        batches.append(order[:size])
        del order[:size]
    return batches


def logits(
    client: httpx.Client, name: str, rows: HeldOut, batches: list[list[int]], at_once: int
) -> NDArray[np.float32]:
    """Return fp32 logits in the order of the rows; requests in flight `at_once` share passes."""

    def ask(batch: list[int]) -> tuple[list[int], list[list[float]]]:
        given = [rows.inputs[row] for row in batch]
        body = {"inputs": [tensor(given)], "outputs": [{"name": "logits"}]}
        while (answered := client.post(f"/v2/models/{name}/infer", json=body)).status_code == 429:
            time.sleep(0.1)
        answer = answered.raise_for_status().json()
        (output,) = answer["outputs"]
        return batch, np.array(output["data"], np.float32).reshape(output["shape"]).tolist()

    found: dict[int, list[float]] = {}
    with ThreadPoolExecutor(at_once) as pool:
        for batch, answers in pool.map(ask, batches):
            found.update(zip(batch, answers, strict=True))
    return np.array([found[row] for row in range(len(found))], dtype=np.float32)


def tensor(given: Sequence[object]) -> dict[str, object]:
    if isinstance(given[0], str):
        return {"name": "text", "datatype": "BYTES", "shape": [len(given)], "data": given}
    pixels = np.stack([np.asarray(each) for each in given])
    return {"name": "image", "datatype": "UINT8", "shape": [*pixels.shape], "data": pixels.flatten().tolist()}


if __name__ == "__main__":
    sys.exit(main())
