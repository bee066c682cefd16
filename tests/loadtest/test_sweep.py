"""Whole load tests against a server of known service time: rates, reports, and what goes wrong midway."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewshard_loadtest.commands import main
from fewshard_loadtest.samples_file import Recording

Start = Callable[[dict[str, dict[str, Any]]], str]

DENSE = {"ms": 20, "macs": 100, "kind": "dense"}
MOE = {"ms": 10, "macs": 40, "kind": "moe", "wrong": 0.2}


def write_scenario(folder: Path, url: str, texts: Path, loads: str, **more: object) -> Path:
    fields = {
        "name": "t",
        "models": ["dense", "moe"],
        "server": {"url": url},
        "payload": {"text": str(texts)},
        "slo": {"p99_ms": 150, "max_errors": 0.0},
        "warmup_s": 0.2,
        "repeats": 1,
        "calibrate": False,
        "price": {"machine": "c7i.large"},
        **more,
    }
    lines = [f"{key}: {json.dumps(value)}" for key, value in fields.items()]
    file = folder / "scenario.yaml"
    file.write_text("\n".join([*lines, "loads:", loads, ""]), encoding="utf-8")
    return file


def run(scenario: Path, out: Path) -> int:
    return main(["loadtest", str(scenario), "--out", str(out)])


def report(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((out / "report.json").read_text())
    return loaded


def test_a_slowed_model_breaks_the_budget(simulated: Start, texts: Path, tmp_path: Path) -> None:
    """What CI does with `fewshard report compare`: the same load test twice, the model slower at last."""
    loads = "  - {kind: closed, users: [1, 8], duration_s: 1.5}"
    outs = []
    for name, ms in (("before", 20.0), ("after", 30.0)):
        folder = tmp_path / name
        folder.mkdir()
        url = simulated({"dense": {**DENSE, "ms": ms}})
        assert run(write_scenario(folder, url, texts, loads, models=["dense"]), folder / "out") == 0
        outs.append(str(folder / "out"))
    budget = tmp_path / "budget.yaml"
    budget.write_text("default: {saturated: 0.2, alone_p50: 0.3}\n", encoding="utf-8")
    assert main(["report", "compare", *outs, "--budget", str(budget)]) == 1
    assert main(["report", "compare", *outs[::-1], "--budget", str(budget)]) == 0
    assert main(["report", "compare", outs[0], outs[0]]) == 0
    budget.write_text("default: {saturated: 0.9, alone_p50: 0.9}\n", encoding="utf-8")
    assert main(["report", "compare", *outs, "--budget", str(budget)]) == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_whole_load_test(simulated: Start, texts: Path, tmp_path: Path) -> None:
    """Rates, R and cost follow from the service times; every figure again from the raw samples."""
    loads = """
  - {kind: closed, users: [1, 16], duration_s: 3}
  - {kind: search, duration_s: 6, precision: 0.1}
  - {kind: spike, base: 0.2, peak: 1.2, every_s: 4, spike_s: 1, duration_s: 8, relative: true}
  - {kind: mixed, rate: 20, shares: {dense: 1, moe: 1}, duration_s: 3}"""
    out = tmp_path / "out"
    url = simulated({"dense": DENSE, "moe": MOE})
    assert run(write_scenario(tmp_path, url, texts, loads, repeats=2), out) == 0
    found = report(out)
    dense, moe = found["models"]["dense"], found["models"]["moe"]
    assert dense["saturated"]["mean"] == pytest.approx(50, rel=0.2)
    assert moe["saturated"]["mean"] == pytest.approx(100, rel=0.2)
    assert 15 < dense["sustained"]["mean"] < 52
    assert moe["sustained"]["mean"] > 1.2 * dense["sustained"]["mean"]
    assert moe["realised"]["model"] == pytest.approx(2 * 0.4, rel=0.05)
    assert dense["accuracy"]["share"]["right"] == dense["accuracy"]["share"]["num"] == 40
    assert moe["accuracy"]["paired"]["only_dense"] > 0
    assert moe["experts"]["0"]["2"] == pytest.approx(0.5, abs=0.01)
    assert found["verdicts"][0].startswith(("moe serves ", "moe and dense cannot be told"))
    assert "against $" in found["verdicts"][0]
    recompute(out, found)
    html = (out / "report.html").read_text()
    assert html.count("<svg") >= 5
    assert len(html) < 3_000_000
    assert "http://" not in html.replace(url, "").replace("http://www.w3.org/2000/svg", "")
    assert "<script" not in html
    assert found["verdicts"][0] in (out / "report.md").read_text()


def recompute(out: Path, found: dict[str, Any]) -> None:
    """Percentiles, rates, accuracy and cost from the samples, by other means than the report's."""
    legs = json.loads((out / "run.json").read_text())["legs"]
    truth = json.loads((out / "run.json").read_text())["truth"]["text"]
    for name, model in found["models"].items():
        own = [leg for leg in legs if leg["model"] == name]
        alone = [leg for leg in own if leg["kind"] == "closed" and leg["result"]["plan"]["num_users"] == 1]
        waits = np.concatenate([good_latencies(out, leg) for leg in alone])
        for share in (50, 95, 99):
            wanted = np.percentile(waits, share, method="inverted_cdf")
            assert model["alone"][f"p{share}_ms"] == pytest.approx(wanted, abs=1e-6)
        final = [leg for leg in own if leg["kind"] == "search" and leg["is_kept"]]
        rates = [
            max(leg["result"]["plan"]["rate"] for leg in final if leg["repeat"] == repeat)
            for repeat in (0, 1)
        ]
        assert model["sustained"]["values"] == pytest.approx(rates)
        assert model["sustained"]["mean"] == pytest.approx(sum(rates) / 2)
        assert model["money"]["per_million"] == pytest.approx(0.08925 / (sum(rates) / 2 * 0.7 * 3600) * 1e6)
        answered: dict[int, str] = {}
        for leg in (leg for leg in legs if leg["model"] in (name, "mixed")):
            recording = Recording.load(out / f"samples/{leg['number']:04d}.npz")
            for row in recording.rows:
                if recording.models[row["model"]] == name and row["label"] >= 0:
                    answered.setdefault(int(row["item"]), recording.labels[row["label"]])
        right = sum(truth["names"][truth["labels"][item]] == label for item, label in answered.items())
        assert model["accuracy"]["share"] == {"num": len(answered), "right": right}
    with (out / "report.csv").open() as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    assert float(rows["moe"]["per_million"]) == found["models"]["moe"]["money"]["per_million"]


def good_latencies(out: Path, leg: dict[str, Any]) -> np.ndarray:
    rows = Recording.load(out / f"samples/{leg['number']:04d}.npz").rows
    measured = leg["result"]["measured_s"]
    inside = (rows["sent_s"] >= 0) & (rows["sent_s"] < measured + 1e-3) & (rows["error"] < 0)
    return rows["latency_ms"][inside].astype(float)


def test_an_slo_that_nobody_can_meet(simulated: Start, texts: Path, tmp_path: Path) -> None:
    url = simulated({"dense": {**DENSE, "ms": 60}})
    loads = "  - {kind: search, duration_s: 0.6, start: 0.8}"
    scenario = write_scenario(
        tmp_path, url, texts, loads, models=["dense"], slo={"p99_ms": 5, "max_errors": 0.0}
    )
    assert run(scenario, tmp_path / "out") == 3
    assert report(tmp_path / "out")["verdicts"] == ["dense has no rate within 5 ms p99."]


@pytest.mark.parametrize(
    ("trouble", "says"),
    [("die", "{url} does not answer: "), ("sick", "{url} stopped answering after 1 runs")],
)
def test_a_server_that_breaks_midway_leaves_a_partial_report(
    simulated: Start, texts: Path, tmp_path: Path, trouble: str, says: str
) -> None:
    """It breaks after the first of two runs, which is kept."""
    found, url = broken_midway(simulated, texts, tmp_path, trouble, code=4)
    assert found["partial"].startswith(says.format(url=url))
    assert [entry["num_failures"] for entry in found["runs"]] == [0]
    assert found["models"]["dense"]["alone"]["num"] == found["runs"][0]["num_requests"] > 0
    assert f"Partial: {url}" in (tmp_path / "out/report.html").read_text()


def test_a_server_that_gives_errors_midway_is_warned_of(
    simulated: Start, texts: Path, tmp_path: Path
) -> None:
    found, _ = broken_midway(simulated, texts, tmp_path, "fail", code=0)
    assert found["partial"] is None
    good, bad = (entry["num_requests"] for entry in found["runs"])
    assert [entry["num_failures"] for entry in found["runs"]] == [0, bad]
    says = f"dense failed {bad:,} of {good + bad:,} requests; most often: status 500."
    assert says in found["warnings"]


def broken_midway(
    simulated: Start, texts: Path, folder: Path, trouble: str, code: int
) -> tuple[dict[str, Any], str]:
    """The report of two short runs against a server that breaks between them, and its URL."""
    url = simulated({"dense": {**DENSE, "ms": 5, "trouble": trouble}})
    loads = "  - {kind: closed, users: [1, 2], duration_s: 0.5}"
    scenario = write_scenario(folder, url, texts, loads, models=["dense"])
    assert run(scenario, folder / "out") == code
    return report(folder / "out"), url


def test_ctrl_c_leaves_a_partial_report(simulated: Start, texts: Path, tmp_path: Path) -> None:
    url = simulated({"dense": {**DENSE, "ms": 5}})
    loads = "  - {kind: closed, users: [1], duration_s: 1}\n  - {kind: soak, rate: 20, duration_s: 60}"
    scenario = write_scenario(tmp_path, url, texts, loads, models=["dense"])
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "fewshard_loadtest.commands",
        "loadtest",
        str(scenario),
        "--out",
        str(out),
    ]
    process = subprocess.Popen(command, env=dict(os.environ))
    while not (out / "run.json").exists():
        time.sleep(0.1)
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=40) == 130
    assert report(out)["partial"] == "interrupted"
    assert report(out)["models"]["dense"]["alone"]["num"] > 20


def test_no_server_and_an_unknown_model_are_told_at_once(
    simulated: Start, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loads = "  - {kind: closed, users: [1], duration_s: 1}"
    nobody = write_scenario(tmp_path, "http://127.0.0.1:9", texts, loads)
    assert run(nobody, tmp_path / "a") == 4
    assert "does not answer" in report(tmp_path / "a")["partial"]
    url = simulated({"dense": DENSE})
    assert run(write_scenario(tmp_path, url, texts, loads), tmp_path / "b") == 2
    assert "no model named 'moe' is served here" in capsys.readouterr().err


def test_a_model_for_which_there_is_no_payload_is_named(
    simulated: Start, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = simulated({"dense": {**DENSE, "task": "audio"}})
    loads = "  - {kind: closed, users: [1], duration_s: 1}"
    assert run(write_scenario(tmp_path, url, texts, loads, models=["dense"]), tmp_path / "out") == 2
    assert "dense is of task 'audio'; payloads are there for text, image" in capsys.readouterr().err


def test_a_report_can_be_written_anew_with_another_price(
    simulated: Start, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = simulated({"dense": {**DENSE, "ms": 5}})
    loads = "  - {kind: search, duration_s: 1, start: 110, precision: 0.9}"
    out = tmp_path / "out"
    assert run(write_scenario(tmp_path, url, texts, loads, models=["dense"]), out) == 0
    first = report(out)["models"]["dense"]
    arguments = [
        "report",
        str(out),
        "--per-hour",
        "0.1785",
        "--currency",
        "EUR",
        "--out",
        str(tmp_path / "b"),
    ]
    assert main(arguments) == 0
    second = report(tmp_path / "b")["models"]["dense"]
    assert second["money"]["per_million"] == pytest.approx(2 * first["money"]["per_million"])
    assert second["sustained"] == first["sustained"]
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no load test" in capsys.readouterr().err
    assert run(tmp_path / "scenario.yaml", out) == 2, "a folder is never written over"


@pytest.mark.slow
def test_the_generator_is_measured_against_haproxy() -> None:
    from fewshard_loadtest.generator_calibration import measure

    rate = measure("m", "classify", "texts")
    assert rate is not None, "ray[serve] brings HAProxy"
    assert rate > 200
