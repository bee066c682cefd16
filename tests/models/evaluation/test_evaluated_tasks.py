"""A task is judged by one line of the registry; one without such a line is refused by name."""

import numpy as np
import pytest

from fewshard_models.errors import DataError
from fewshard_models.evaluation import tasks
from fewshard_models.evaluation.assessment import _corrupted, _other_domain, _slices
from fewshard_models.evaluation.tasks import EvaluatedTask, HeldOut, evaluated_task, held_out

ROWS = HeldOut("rows", np.arange(6.0).reshape(3, 2), np.array([0, 1, 1]), ("small", "big"))


def scaled(rows, kind, severity):
    return rows * -severity


@pytest.fixture
def table_task(monkeypatch):
    monkeypatch.setitem(tasks.TASKS, "table", EvaluatedTask(lambda: ROWS, scaled, ("scaled",)))
    return evaluated_task("table")


def big(rows):
    return (np.asarray(rows).sum(axis=1) > 2).astype(np.int64)


def test_a_task_of_one_line_is_judged(table_task):
    test = held_out("table", 2)
    assert (test.dataset, test.names, test.labels.tolist()) == ("rows", ("small", "big"), [0, 1])
    assert test.inputs.tolist() == [[0.0, 1.0], [2.0, 3.0]]
    assert list(_slices(ROWS, table_task)) == ["class small", "class big"]
    assert _other_domain(big, table_task, None) == {}
    found = {name: share.accuracy for name, share in _corrupted(big, table_task, ROWS).items()}
    assert found == {"clean": 1.0, "scaled 1": 0.333333, "scaled 2": 0.333333, "scaled 3": 0.333333}


def test_a_task_without_data_is_refused():
    with pytest.raises(DataError, match="judge a model of task 'audio' on, only of text, image"):
        held_out("audio")


def test_texts_have_slices_and_images_none():
    names = evaluated_task("text").slices(["not good", "fine"])
    assert {"negation", "no negation"} <= set(names)
    assert evaluated_task("image").slices([]) == {}
