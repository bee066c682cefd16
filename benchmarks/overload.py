"""What a server still answers at twice its capacity, and what a refusal costs; or see --help.

Starts `fewshard serve` with one model, finds its peak with a closed loop, then sends twice as much at times
that no answer delays. Prints a line a round, with --out also as JSON.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from chaos_load import Server, running

from fewshard_loadtest.measure import Plan, Result
from fewshard_loadtest.recording import Recording
from fewshard_loadtest.run import run_recorded

PORT = 8240
USERS = 64
OVERLOAD = 2.0


def make_bert_base(tokenizer: Path, folder: Path) -> Path:
    """A classifier of BERT-base's size with random weights and the tokenizer of another checkpoint."""
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    BertForSequenceClassification(BertConfig(num_labels=2)).save_pretrained(folder)
    return folder


def measure(server: Server, payload: str, seconds: float, folder: Path) -> dict[str, Any]:
    """One round: the peak, then the overload. CPU times are of all the server's processes."""
    common: dict[str, Any] = {"model": "m", "payload": payload, "server_pid": server.process.pid}
    plan = Plan(host=server.url, num_users=USERS, warmup_s=2, duration_s=seconds, **common)
    peak, _ = _run(plan, folder)
    rate = OVERLOAD * peak.answered_rps
    plan = Plan(host=server.url, num_users=USERS, warmup_s=4, duration_s=seconds, rate=rate, **common)
    over, recording = _run(plan, folder)
    rows = recording.measured
    refused_ms = rows["latency_ms"][rows["error"] >= 0]
    assert peak.server_cpu_s is not None
    assert over.server_cpu_s is not None
    cpu_each_s = peak.server_cpu_s / (peak.num_requests - peak.num_failures)
    spent_s = over.server_cpu_s - cpu_each_s * (over.num_requests - over.num_failures)
    return {
        "peak_rps": peak.answered_rps,
        "sent_rps": round(over.num_requests / over.measured_s, 1),
        "good_rps": over.answered_rps,
        "goodput": round(over.answered_rps / peak.answered_rps, 3),
        "refused": over.num_failures,
        "errors": over.errors,
        "refused_p50_ms": _quantile(refused_ms, 0.5),
        "refused_p99_ms": _quantile(refused_ms, 0.99),
        "good_p99_ms": over.p99_ms,
        "cpu_ms_answer": round(1000 * cpu_each_s, 2),
        "cpu_ms_refusal": round(1000 * spent_s / over.num_failures, 2) if over.num_failures else None,
        "generator_cpu": over.generator_cpu,
        "lag_p50_ms": _quantile(rows["lag_ms"], 0.5),
        "lag_p99_ms": over.lag_p99_ms,
    }


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
    parser.add_argument("--out", type=Path)
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
        found = {"model": title, "rounds": rounds}
        options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
