"""What the report says where true labels are not the model's, and where no rate was looked for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fewshard_loadtest.report.figures import figures_of
from fewshard_loadtest.report.output import write_report
from fewshard_loadtest.report.verdict import verdicts
from fewshard_loadtest.results_store import Run

MakeRun = Callable[..., Run]


@pytest.fixture(scope="module")
def folder(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A load test of one model, whose labels are "no" and "yes"."""
    folder = tmp_path_factory.mktemp("truth")
    make_run(folder, num_repeats=1, models=["sst2-moe"])
    return folder


def with_truth(folder: Path, **truth: Any) -> Run:
    run = Run.load(folder)
    run.models["sst2-moe"]["labels"] = ["no", "yes"]
    run.truth["text"].update(truth)
    return run


def test_labels_as_numbers_give_the_accuracy_of_labels_as_names(folder: Path) -> None:
    shares = []
    for names in (["no", "yes"], ["0", "1"], ["LABEL_0", "LABEL_1"]):
        (model,) = figures_of(with_truth(folder, names=names), folder).models
        assert model.accuracy is not None
        assert set(model.accuracy.by_class) == {"no", "yes"}
        assert model.no_accuracy == ""
        shares.append(model.accuracy.share)
    assert shares[0] == shares[1] == shares[2]
    assert 0.85 < (shares[0].value or 0) < 0.95


@pytest.mark.parametrize(
    ("truth", "words"),
    [
        ({"names": ["bad", "good"]}, "no accuracy, because the payload's labels (bad, good) are none of"),
        ({"names": [], "labels": [], "remark": "3 of its 9 rows have no label"}, "because 3 of its 9 rows"),
    ],
)
def test_why_there_is_no_accuracy_is_said(
    folder: Path, tmp_path: Path, truth: dict[str, Any], words: str
) -> None:
    if "remark" not in truth:
        truth = {**truth, "labels": sorted(with_truth(folder).truth["text"]["labels"])}
    write_report(with_truth(folder, **truth), folder, tmp_path)
    assert words in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert words in (tmp_path / "report.html").read_text(encoding="utf-8").replace("&#39;", "'")


def test_a_rate_that_nobody_looked_for_is_not_one_that_was_not_found(folder: Path) -> None:
    run = Run.load(folder)
    run.sustained = {"1": {"sst2-moe": [None]}}
    assert verdicts(figures_of(run, folder)) == ["sst2-moe has no rate within 150 ms p99."]
    run.sustained = {}
    (sentence,) = verdicts(figures_of(run, folder))
    assert sentence == "sst2-moe was measured; no rate within the SLO was looked for."
