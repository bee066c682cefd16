"""Load files, good and bad, and made-up loads."""

import json

import numpy as np
import pytest

from fewshard_core.values import ExpertCounts
from fewshard_models.errors import DataError
from fewshard_serve.expert_statistics import Routing
from fewshard_serve.placement.loads import drifting, read_loads, read_trace, uniform, zipf
from fewshard_serve.protocol.experts import describe_routing

MATRIX = [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("loads.json", json.dumps(MATRIX)),
        ("loads.json", json.dumps({"loads": MATRIX})),
        ("loads.csv", "1,2,3\n4, 5, 6\n\n"),
    ],
)
def test_a_matrix_is_read(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_loads(tmp_path / name).tolist() == MATRIX


@pytest.mark.parametrize(("window", "expected"), [(MATRIX, MATRIX), ([[0] * 3] * 2, [[10, 20, 30]] * 2)])
def test_the_servers_own_answer_is_read(tmp_path, window, expected):
    def counts(tokens):
        zeros = np.zeros(2)
        return ExpertCounts(np.array(tokens), np.zeros((2, 3)), zeros, zeros.astype(int), 1)

    body = describe_routing(Routing(counts([[10, 20, 30]] * 2), counts(window), 60.0))
    (tmp_path / "experts.json").write_text(json.dumps({**body, "replicas": 1}))
    assert read_loads(tmp_path / "experts.json").tolist() == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "[[1, 2", "line 1"),
        ("a.json", "[[1, -2]]", "layer 0, expert 1 is -2"),
        ("a.json", "[[1, NaN]]", "expert 1 is nan"),
        ("a.json", "[[1, 2], [3]]", "differ in length"),
        ("a.json", "[1, 2]", "a matrix"),
        ("a.json", "[]", "a matrix"),
        ("a.json", '[["a"]]', "no matrix of numbers"),
        ("a.json", "{}", "no matrix of numbers"),
        ("a.json", "[[true]]", "no matrix of numbers"),
        ("a.json", '{"layers": [{"layer": 0}]}', "not those of GET"),
        ("a.json", '{"layers": 3}', "not those of GET"),
        ("a.csv", "1,2\nthree,4\n", "three"),
        ("a.csv", "1,2\n3\n", "differ in length"),
    ],
)
def test_a_bad_file_is_refused_by_name(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as refused:
        read_loads(tmp_path / name)
    assert str(tmp_path / name) in str(refused.value)


def test_an_absent_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"absent\.json holds no loads"):
        read_loads(tmp_path / "absent.json")


def test_a_trace_is_a_list_of_loads(tmp_path):
    file = tmp_path / "trace.json"
    file.write_text(json.dumps([MATRIX, {"loads": MATRIX}]))
    assert [step.tolist() for step in read_trace(file)] == [MATRIX, MATRIX]
    file.write_text(json.dumps(MATRIX))
    assert [step.tolist() for step in read_trace(file)] == [MATRIX]
    file.write_text(json.dumps([MATRIX, [[1, 2]]]))
    with pytest.raises(DataError, match="the steps differ"):
        read_trace(file)


def test_made_up_loads():
    assert uniform(2, 4).tolist() == [[0.25] * 4] * 2
    loads = zipf(3, 8, 1.5, seed=0)
    assert np.sort(loads, axis=1)[:, ::-1] == pytest.approx(
        np.tile(loads.max() * np.arange(1, 9) ** -1.5, (3, 1))
    )
    assert not (loads[0] == loads[1]).all()
    assert (loads == zipf(3, 8, 1.5, seed=0)).all()


def test_drift_keeps_the_sum_and_walks_as_far_as_it_should():
    start = uniform(1, 4000)
    steps = list(drifting(start, 10, drift=0.1, seed=0))
    assert (steps[0] == start).all()
    assert [step.sum() for step in steps] == pytest.approx([1.0] * 10)
    assert np.log(steps[9] / start).std() == pytest.approx(0.1 * 3, rel=0.05)
