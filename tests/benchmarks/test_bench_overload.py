"""The overload benchmark runs, its sums are right, and its file keeps other models' figures."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def overload(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("overload", ROOT / "benchmarks/overload.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_run_takes_the_place_of_the_last_one_with_that_model_alone(overload, tmp_path):
    out = tmp_path / "overload.json"
    for model, goodput in (("a", 0.5), ("b", 0.6), ("a", 0.7)):
        overload._write(out, {"model": model, "goodput": goodput})
    models = {each["model"]: each["goodput"] for each in json.loads(out.read_text())["models"]}
    assert models == {"a": 0.7, "b": 0.6}


@pytest.mark.server
@pytest.mark.slow
def test_a_short_run_gives_every_figure(tmp_path):
    out = tmp_path / "overload.json"
    command = [sys.executable, ROOT / "benchmarks/overload.py", "--rounds", "1", "--seconds", "4"]
    done = subprocess.run([*command, "--out", out], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (model,) = json.loads(out.read_text())["models"]
    (found,) = model["rounds"]
    assert found["sent_rps"] > 1.2 * found["peaks_rps"][0]
    assert found["refused"] > 0
    assert 0 < found["goodput"] < 1.5
    assert found["goodput"] == pytest.approx(2 * found["good_rps"] / sum(found["peaks_rps"]), abs=0.002)
    assert found["refused_p50_ms"] <= found["refused_p99_ms"]
    assert set(found["errors"]) == {"status 429"}
