"""The trial of engines: which format tunes a peer, what calibrates, and one real trial of torch."""

from pathlib import Path

import pytest

from fewshard_loadtest.payloads import own_texts
from fewshard_loadtest.peers import checkpoint, engines
from fewshard_loadtest.peers.checkpoint import Expected
from fewshard_loadtest.peers.engines import Trial


def test_the_fastest_format_of_the_class_tunes() -> None:
    trials = [
        Trial("openvino", "fp32", 100.0, 0.874, 1.0),
        Trial("openvino", "bf16", 200.0, 0.871, 0.99),
        Trial("openvino", "int8", 300.0, 0.870, 0.97),
        Trial("openvino", "fp16", 400.0, 0.874, 0.5),
        Trial("openvino", "fp8", 500.0, error="no such format"),
    ]
    assert engines.fastest(trials, 0.874) == trials[1]
    assert engines.fastest(trials[2:], 0.874) is None
    assert engines.fastest(trials, None) == trials[2], "without an accuracy, agreement decides"


def test_accuracy_needs_every_true_label() -> None:
    known = [Expected("x", "a", 1.0, truth="a"), Expected("y", "a", 1.0, truth="b")]
    assert engines.accuracy(known, ["a", "a"]) == 0.5
    assert engines.accuracy([*known, Expected("z", "a", 1.0)], ["a"] * 3) is None
    assert engines.accuracy([], []) is None


def test_calibration_is_of_the_training_set_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEWSHARD_DATA", raising=False)
    assert engines.calibration_texts() == [*own_texts().items]
    (tmp_path / "sst2").mkdir()
    rows = "a phrase \t1\n" + "".join(
        f'a "film {number} that is not the worst of this year \t1\n' for number in range(500)
    )
    (tmp_path / "sst2/train.tsv").write_text(f"sentence\tlabel\n{rows}")
    monkeypatch.setenv("FEWSHARD_DATA", str(tmp_path))
    texts = engines.calibration_texts()
    assert len(set(texts)) == 300
    assert texts == engines.calibration_texts(), "the same ones each time"
    assert texts[0].startswith('a "film ')


def test_exports_are_made_once_and_anew_for_another_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []
    monkeypatch.setattr(engines, "run_app", lambda name, arguments, *_: ran.append([name, *arguments]))
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    first = engines.prepared(tmp_path / "bin", model, tmp_path)
    assert engines.prepared(tmp_path / "bin", model, tmp_path) == first
    assert ran == [["quantise.py", str(model), str(first)]]
    (first / "done").unlink()
    engines.prepared(tmp_path / "bin", model, tmp_path)
    assert len(ran) == 2, "an export that was cut short is made again"
    (model / "config.json").write_text("{ }")
    assert engines.prepared(tmp_path / "bin", model, tmp_path) != first


@pytest.mark.slow
def test_torch_is_tried_in_every_format(tmp_path: Path) -> None:
    texts = [*own_texts().items]
    checkpoint.make(tmp_path / "model", None, texts)
    expected = checkpoint.expected_labels(tmp_path / "model", texts, ["positive"] * len(texts))
    trials = engines.tried("torch", None, tmp_path / "model", None, expected, threads=1)
    assert [trial.dtype for trial in trials] == ["fp32", "bf16", "fp16"]
    fp32 = trials[0]
    ties = sum(one.margin < checkpoint.LEAST_MARGIN for one in expected) / len(expected)
    assert (fp32.error, fp32.agreeing) == ("", pytest.approx(1.0, abs=ties + 1e-9))
    assert fp32.per_s > 0
    of_fp32 = engines.accuracy(expected, [one.label for one in expected])
    assert fp32.accuracy == pytest.approx(of_fp32, abs=ties + 1e-9)
