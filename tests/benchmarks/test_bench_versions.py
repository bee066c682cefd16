"""The benchmarks of two checkouts and of the ASGI layer: their tables and figures, without servers."""

import argparse
import asyncio
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def two_versions(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import two_versions

    return two_versions


def test_the_table_has_medians_and_the_ratio_of_each_round(two_versions, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["two_versions.py", "a", "b"])
    measured = two_versions.Measured
    runs = [
        measured("before", "m", 20.0, 1000.0, {1: 100.0}, {1: 8.0}),
        measured("after", "m", 10.0, 1100.0, {1: 90.0}, {1: 4.0}),
        measured("before", "m", 20.0, 1000.0, {1: 100.0}, {1: 8.0}),
        measured("after", "m", 30.0, 1000.0, {1: 120.0}, {1: 8.0}),
    ]
    two_versions._write(runs, argparse.Namespace(out=tmp_path))
    rows = (tmp_path / "two_versions.md").read_text().splitlines()
    assert rows[2] == "| m, requests/s, 1 users | 100 | 105 | 1.050 | 0.90, 1.20 |"
    assert rows[4] == "| m, first answer, s | 20 | 20 | 1.000 | 0.50, 1.50 |"
    stored = json.loads((tmp_path / "two_versions.json").read_text())
    assert len(stored["runs"]) == 4
    assert {"date", "commit", "cpu", "cores"} <= set(stored["machine"])


def test_each_checkout_has_one_echo_application(two_versions):
    command = two_versions._echo(ROOT, argparse.Namespace(port=1))
    assert Path(command[1]).is_file()
    assert command[0] == str(ROOT / ".venv/bin/python")


def test_the_asgi_layers_are_measured_on_the_same_requests(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import asgi_layer

    found = asyncio.run(asgi_layer.measure(num_rounds=2, num_requests=3))
    assert {name: len(spent) for name, spent in found.items()} == {"ours": 2, "starlette": 2, "router": 2}
    assert all(one > 0 for spent in found.values() for one in spent)
