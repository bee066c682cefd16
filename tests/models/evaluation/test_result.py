"""Result files: they come back as written, and one that is damaged says where."""

import json
from dataclasses import replace

import numpy as np
import pytest

from fewshard_models.errors import DataError
from fewshard_models.evaluation.result import load, save
from fewshard_models.evaluation.store import load_results


def same(first, second) -> bool:
    assert np.array_equal(first.held_out.predictions, second.held_out.predictions)
    assert np.array_equal(first.held_out.labels, second.held_out.labels)
    return replace(first, held_out=None) == replace(second, held_out=None)


def test_results_come_back_as_written(result, tmp_path):
    made = result("sst2-moe", 3, wrong=(1, 5, 8), dense_ms=20.0, routing={"all": [[0.25, 0.75]]})
    save(made, tmp_path / "a.json")
    found = load(tmp_path / "a.json")
    assert same(found, made)
    assert found.held_out.accuracy == pytest.approx(0.97)
    assert found.batch_time(64).speedup == pytest.approx(2.0)
    assert found.batch_time(8) is None
    fields = json.loads((tmp_path / "a.json").read_text())
    assert fields["held_out"]["confusion"] == [[49, 1], [2, 48]]


def test_results_without_accuracy_or_times_come_back(result, tmp_path):
    made = result("sst2-moe", held_out=None, missing="needs pretrained weights", timings=None)
    save(made, tmp_path / "a.json")
    assert load(tmp_path / "a.json") == made


def test_ten_thousand_predictions_take_kilobytes(result, tmp_path):
    made = result("cifar10-dense", num_items=10_000)
    labels = np.random.default_rng(0).integers(0, 10, 10_000)
    held_out = replace(made.held_out, names=tuple("abcdefghij"), predictions=labels, labels=labels)
    save(replace(made, held_out=held_out), tmp_path / "a.json")
    assert (tmp_path / "a.json").stat().st_size < 20_000
    assert np.array_equal(load(tmp_path / "a.json").held_out.labels, labels)


def damaged(file, **changes):
    fields = json.loads(file.read_text())
    for path, value in changes.items():
        *parents, last = path.split("__")
        inner = fields
        for parent in parents:
            inner = inner[parent]
        if value is None:
            del inner[last]
        else:
            inner[last] = value
    file.write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format": 99}, "is no result of format 1"),
        ({"cost": None}, "lacks the field 'cost'"),
        ({"held_out__labels": None}, "lacks the field 'labels'"),
        ({"held_out__predictions": "!!"}, "is damaged"),
        ({"held_out__predictions": "AAAA"}, "is damaged"),
        ({"held_out__n": 99}, "is damaged: 100 classes, expected 99"),
        ({"held_out__accuracy": 0.5}, "is damaged: accuracy 0.5 is not that of its predictions"),
        ({"unknown": 1}, "is damaged.*unknown"),
        ({"timings__batches": [{"batch": 1}]}, "is damaged"),
    ],
)
def test_damaged_files_say_what_and_where(result, tmp_path, changes, words):
    file = tmp_path / "a.json"
    save(result("sst2-moe"), file)
    damaged(file, **changes)
    with pytest.raises(DataError, match=rf"a\.json {words}.*measure again"):
        load(file)


def test_a_file_cut_short_names_its_line(result, tmp_path):
    file = tmp_path / "a.json"
    save(result("sst2-moe"), file)
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:7]))
    with pytest.raises(DataError, match=r"a\.json, line 7"):
        load(file)
    file.write_text("[]")
    with pytest.raises(DataError, match="no result of format"):
        load(file)


def test_results_of_a_folder_come_in_the_tables_order(result, tmp_path):
    for model, seed in (("sst2-moe", 1), ("sst2-dense", 0), ("sst2-moe", 0)):
        save(result(model, seed), tmp_path / f"{model}-seed{seed}.json")
    found = [(each.model, each.seed) for each in load_results(tmp_path, "small")]
    assert found == [("sst2-dense", 0), ("sst2-moe", 0), ("sst2-moe", 1)]


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"model": "sst3"}, "the table does not know: sst2-dense"), ({"tier": "tiny"}, "'tiny', not 'small'")],
)
def test_results_astray_are_refused(result, tmp_path, fields, words):
    save(replace(result("sst2-moe"), **fields), tmp_path / "x.json")
    with pytest.raises(DataError, match=rf"x\.json.*{words}"):
        load_results(tmp_path, "small")
