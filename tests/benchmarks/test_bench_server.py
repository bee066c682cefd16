"""The report of `make bench`; what starts and weighs servers is tested with the load generator."""

import json
from pathlib import Path
from types import ModuleType

import pytest

from fewshard_loadtest import Plan
from fewshard_loadtest.measure import Sample, summarise
from fewshard_loadtest.resource_usage import Memory

ROOT = Path(__file__).parents[2]


@pytest.fixture
def report_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import bench_report

    return bench_report


def test_the_report_holds_every_run_and_adds_up_the_memory(report_module: ModuleType, tmp_path: Path) -> None:
    plan = Plan("http://h", "m", num_users=64, duration_s=2.0)
    run = summarise(plan, [Sample(0.5, 12.345, None), Sample(0.6, 1.0, "x")], begun_at=0.0, generator_cpu=0.5)
    memory = [Memory("raylet", 100.0, 60.0), Memory("gcs", 50.0, 40.4)]
    report_module.Report("bench", {"echo": [run]}, {"echo": memory}).write(tmp_path / "out")
    text = (tmp_path / "out/server.md").read_text()
    assert "| echo | m | classify | 64 | 2 | 1 | 0.5 | 12.35 | 12.35 | 0.50 |" in text
    assert "| echo | **together** |  | 100 |" in text
    stored = json.loads((tmp_path / "out/server.json").read_text())
    assert stored["runs"]["echo"][0]["p50_ms"] == 12.345
    assert stored["memory"]["echo"][0] == {"name": "raylet", "rss_mib": 100.0, "pss_mib": 60.0}
    assert {"date", "commit", "cpu", "cores", "ray", "torch"} <= set(stored["machine"])


def test_the_benchmark_itself_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import server

    assert callable(server.measure)
