"""`curve.jsonl`: one line every few steps, cut back to where a resumed run begins."""

import json

import pytest

from fewshard_models.errors import DataError
from fewshard_models.recipes.training_curve import CURVE_FILE, Curve, load_curve


def add(curve, first, last):
    for step in range(first, last + 1):
        curve.add(step, epoch=1, loss=float(step), lr=0.1)


def test_lines_hold_the_mean_loss_since_the_last(tmp_path):
    curve = Curve(tmp_path, 0)
    add(curve, 1, 45)
    curve.add(46, 1, 0.0, 0.1, accuracy=0.75)
    lines = load_curve(tmp_path / CURVE_FILE)
    assert [line["step"] for line in lines] == [20, 40, 46]
    assert lines[0]["loss"] == pytest.approx(10.5)
    assert lines[1]["loss"] == pytest.approx(30.5)
    assert lines[2]["accuracy"] == 0.75
    assert 0 <= lines[0]["seconds"] <= lines[1]["seconds"]


def test_a_resumed_run_drops_what_it_will_do_again(tmp_path):
    add(Curve(tmp_path, 0), 1, 100)
    with (tmp_path / CURVE_FILE).open("a") as stream:
        stream.write('{"step": 120, "lo')  # a kill in the middle of a line
    resumed = Curve(tmp_path, 50)
    assert [line["step"] for line in load_curve(tmp_path / CURVE_FILE)] == [20, 40]
    add(resumed, 51, 60)
    assert [line["step"] for line in load_curve(tmp_path / CURVE_FILE)] == [20, 40, 60]


def test_time_goes_on_over_resumed_runs(tmp_path):
    line = {"step": 20, "epoch": 1, "loss": 1, "lr": 1, "seconds": 1000.0, "cpu_seconds": 1, "cpu_share": 1}
    (tmp_path / CURVE_FILE).write_text(json.dumps(line) + "\n")
    add(Curve(tmp_path, 20), 21, 40)
    assert load_curve(tmp_path / CURVE_FILE)[1]["seconds"] >= 1000


def test_a_fresh_run_starts_a_fresh_file(tmp_path):
    add(Curve(tmp_path, 0), 1, 40)
    Curve(tmp_path, 0)
    with pytest.raises(DataError, match="is empty"):
        load_curve(tmp_path / CURVE_FILE)


def test_damaged_lines_are_named(tmp_path):
    with pytest.raises(DataError, match="no file"):
        load_curve(tmp_path / CURVE_FILE)
    add(Curve(tmp_path, 0), 1, 20)
    with (tmp_path / CURVE_FILE).open("a") as stream:
        stream.write('{"step": 40}\n')
    with pytest.raises(DataError, match=r"curve\.jsonl, line 2"):
        load_curve(tmp_path / CURVE_FILE)


def test_a_gpu_that_tells_is_written_down(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.utilization", lambda: 80)
    monkeypatch.setattr("torch.cuda.power_draw", lambda: 350_000)
    add(Curve(tmp_path, 0), 1, 20)
    line = load_curve(tmp_path / CURVE_FILE)[0]
    assert (line["gpu_share"], line["gpu_watts"]) == (0.8, 350.0)
