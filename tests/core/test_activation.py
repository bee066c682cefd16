"""Scores from logits by problem type, also at the edges of float32."""

import numpy as np
import pytest

from fewshard_core.activation import activate, sigmoid, softmax
from fewshard_core.values import ProblemType

WARNINGS_ARE_ERRORS = pytest.mark.filterwarnings("error")


def logits(*rows: list[float]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.array(rows, np.float32)


def test_single_label_is_softmax() -> None:
    scores = activate(logits([0.0, np.log(3.0)], [5.0, 5.0]), "single_label_classification")
    np.testing.assert_allclose(scores, [[0.25, 0.75], [0.5, 0.5]], rtol=1e-6)
    assert scores.dtype == np.float32


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification"])
def test_exactly_one_label_is_sigmoid(problem: ProblemType) -> None:
    np.testing.assert_allclose(activate(logits([0.0], [np.log(3.0)]), problem), [[0.5], [0.75]], rtol=1e-6)


def test_multi_label_is_sigmoid_of_each() -> None:
    scores = activate(logits([0.0, np.log(3.0), -np.log(3.0)]), "multi_label_classification")
    np.testing.assert_allclose(scores, [[0.5, 0.75, 0.25]], rtol=1e-6)


def test_regression_is_left_alone() -> None:
    values = logits([-3.5], [7.25])
    assert np.array_equal(activate(values, "regression"), values)


@WARNINGS_ARE_ERRORS
def test_softmax_is_stable() -> None:
    np.testing.assert_allclose(
        softmax(logits([3e38, 3e38], [-3e38, 0.0], [1e4, -1e4])), [[0.5, 0.5], [0, 1], [1, 0]]
    )


@WARNINGS_ARE_ERRORS
def test_sigmoid_is_stable_and_keeps_small_probabilities() -> None:
    scores = sigmoid(logits([-3e38, -40.0, 40.0, 3e38]))
    np.testing.assert_allclose(scores, [[0.0, 4.248354e-18, 1.0, 1.0]], rtol=1e-5)
    assert scores.dtype == np.float32
