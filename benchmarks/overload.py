"""What a server still answers at twice its capacity, and what a refusal costs; or see --help.

Starts `fewshard serve` with one model, finds its peak with a closed loop, then sends twice as much at times
that no answer delays, then finds the peak once more, since a shared machine's speed drifts. Prints a line a
round, with --out also as JSON.

The generator shares two cores with the server and gets hundreds of answers at once, so what it says of a
refusal's time is mostly its own. A second process that does little else asks some 100 times a second, too.
"""

import argparse
import http.client
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from chaos_server import Server, running

from fewshard_loadtest.measure import Plan, Result
from fewshard_loadtest.run import run_recorded
from fewshard_loadtest.samples_file import Recording

PORT = 8240
USERS = 64
OVERLOAD = 2.0
WARMUP_S = 4
NUM_OBSERVERS = 16
OBSERVER_PAUSE_S = 0.1


def make_bert_base(tokenizer: Path, folder: Path) -> Path:
    """Make a classifier of BERT-base's size: random weights, another checkpoint's tokenizer."""
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    BertForSequenceClassification(BertConfig(num_labels=2)).save_pretrained(folder)
    return folder


def measure(server: Server, payload: str, seconds: float, folder: Path) -> dict[str, Any]:
    """Run one round: the peak, then the overload. CPU times cover all the server's processes."""
    common: dict[str, Any] = {"model": "m", "payload": payload, "server_pid": server.process.pid}
    plan = Plan(host=server.url, num_users=USERS, warmup_s=2, duration_s=seconds, **common)
    peak, _ = _run(plan, folder)
    rate = OVERLOAD * peak.answered_rps
    plan = Plan(host=server.url, num_users=USERS, warmup_s=WARMUP_S, duration_s=seconds, rate=rate, **common)
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        observing = pool.submit(observe, seconds)
        over, recording = _run(plan, folder)
        observed = np.array(observing.result())
    plan = Plan(host=server.url, num_users=USERS, warmup_s=2, duration_s=seconds, **common)
    after, _ = _run(plan, folder)
    peak_rps = statistics.mean((peak.answered_rps, after.answered_rps))
    rows = recording.measured
    refused_ms = rows["latency_ms"][rows["error"] >= 0]
    good_rps = over.answered_rps + (observed[:, 0] == http.client.OK).sum() / seconds
    quick_ms = observed[observed[:, 0] == http.client.TOO_MANY_REQUESTS, 1]
    assert peak.server_cpu_s is not None
    assert over.server_cpu_s is not None
    cpu_each_s = peak.server_cpu_s / (peak.num_requests - peak.num_failures)
    spent_s = over.server_cpu_s - cpu_each_s * (over.num_requests - over.num_failures)
    return {
        "peaks_rps": [peak.answered_rps, after.answered_rps],
        "sent_rps": round(over.num_requests / over.measured_s, 1),
        "good_rps": round(good_rps, 1),
        "goodput": round(good_rps / peak_rps, 3),
        "refused": over.num_failures,
        "errors": over.errors,
        "observed_refusals": len(quick_ms),
        "observed_refused_p50_ms": _quantile(quick_ms, 0.5),
        "observed_refused_p99_ms": _quantile(quick_ms, 0.99),
        "refused_p50_ms": _quantile(refused_ms, 0.5),
        "refused_p99_ms": _quantile(refused_ms, 0.99),
        "good_p99_ms": over.p99_ms,
        "cpu_ms_answer": round(1000 * cpu_each_s, 2),
        "cpu_ms_refusal": round(1000 * spent_s / over.num_failures, 2) if over.num_failures else None,
        "generator_cpu": over.generator_cpu,
        "lag_p50_ms": _quantile(rows["lag_ms"], 0.5),
        "lag_p99_ms": over.lag_p99_ms,
    }


def observe(seconds: float) -> list[tuple[int, float]]:
    """Send requests from a separate process during the load. Return statuses and milliseconds."""
    time.sleep(WARMUP_S + 1)
    stop_at, seen = time.monotonic() + seconds, []
    body = json.dumps({"inputs": ["a gripping and often funny film"]})

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
        while (sent_at := time.monotonic()) < stop_at:
            connection.request("POST", "/v2/models/m/classify", body)
            answer = connection.getresponse()
            answer.read()
            seen.append((answer.status, 1000 * (time.monotonic() - sent_at)))
            time.sleep(OBSERVER_PAUSE_S)

    threads = [threading.Thread(target=ask) for _ in range(NUM_OBSERVERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen


def _run(plan: Plan, folder: Path) -> tuple[Result, Recording]:
    file = folder / "samples.npz"
    return run_recorded(plan, file), Recording.load(file)


def _quantile(values: Any, share: float) -> float | None:
    return round(float(np.quantile(values, share)), 1) if len(values) else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="zoo:sst2-dense", help="a checkpoint (default: %(default)s)")
    parser.add_argument("--bert-base", action="store_true", help="random weights of that size, its tokenizer")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each of a round's two runs")
    parser.add_argument("--out", type=Path, help="a JSON file, where other models' figures stay")
    options = parser.parse_args()
    payload = "sst2" if os.environ.get("FEWSHARD_DATA") else "texts"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, title = options.model, Path(options.model).name
        if options.bert_base:
            path, title = str(make_bert_base(Path(path), folder / "bert")), "BERT-base's size, random weights"
        config = {"models": [{"name": "m", "path": path}], "server": {"port": PORT, "grpc_port": 0}}
        rounds = []
        with running(folder, config) as server:
            for _ in range(options.rounds):
                rounds.append(measure(server, payload, options.seconds, folder))
                print(json.dumps(rounds[-1]), flush=True)
    share = statistics.median(each["goodput"] for each in rounds)
    print(f"median: {share:.0%} of the peak answered while {OVERLOAD:.0%} are sent")
    if options.out:
        _write(options.out, {"model": title, "date": f"{date.today()}", "goodput": share, "rounds": rounds})
    return 0


def _write(path: Path, found: dict[str, Any]) -> None:
    """Write the model's figures into the file. Other models' figures stay, an earlier run is replaced."""
    known = json.loads(path.read_text(encoding="utf-8"))["models"] if path.exists() else []
    models = [each for each in known if each["model"] != found["model"]] + [found]
    path.write_text(json.dumps({"models": models}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
