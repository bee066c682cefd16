"""Measures of predictions, against cases worked out by hand."""

import numpy as np
import pytest

from fewshard_models.evaluation import metrics

LABELS = np.array([0, 0, 0, 0, 1, 1])
PREDICTIONS = np.array([0, 0, 0, 1, 1, 0])


def test_accuracy_and_f1():
    assert metrics.accuracy(PREDICTIONS, LABELS) == pytest.approx(4 / 6)
    # Class 0: 3 right of 4 predicted and 4 true, 2*3/8; class 1: 1 of 2 and 2, 2*1/4.
    assert metrics.macro_f1(PREDICTIONS, LABELS) == pytest.approx((0.75 + 0.5) / 2)


def test_confusion_has_true_classes_in_rows():
    assert metrics.confusion(PREDICTIONS, LABELS, 3).tolist() == [[3, 1, 0], [1, 1, 0], [0, 0, 0]]


def test_standard_errors():
    assert metrics.standard_error(0.91, 872) == pytest.approx(0.00969, abs=1e-5)
    mean, error = metrics.mean_and_error([0.90, 0.92, 0.91])
    assert mean == pytest.approx(0.91)
    assert error == pytest.approx(0.01 / 3**0.5)
    assert metrics.mean_and_error([0.9]) == (0.9, None)


@pytest.mark.parametrize(
    ("gained", "lost", "p"),
    [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 2 / 32), (1, 9, 2 * 11 / 1024), (9, 1, 2 * 11 / 1024)],
)
def test_sign_test(gained, lost, p):
    assert metrics.sign_test(gained, lost) == pytest.approx(p)


@pytest.mark.parametrize(("gained", "lost"), [(0, 1), (3, 14), (29, 17), (120, 80), (900, 1100)])
def test_sign_test_is_scipys_binomial_test(gained, lost):
    stats = pytest.importorskip("scipy.stats", reason="scipy comes with the extra loadtest")
    expected = stats.binomtest(gained, gained + lost).pvalue
    assert metrics.sign_test(gained, lost) == pytest.approx(expected, rel=1e-9)


def test_sign_test_of_thousands_does_not_overflow():
    assert 0 < metrics.sign_test(900, 1100) < 1e-4
    assert metrics.sign_test(0, 3000) == 0.0


def test_mcnemar_counts_only_items_one_has_right():
    labels = np.array([0, 0, 1, 1, 1, 0])
    before = np.array([0, 1, 1, 0, 0, 1])
    after = np.array([0, 0, 0, 1, 1, 1])
    found = metrics.mcnemar(before, after, labels)
    assert (found.gained, found.lost) == (3, 1)
    assert found.p == pytest.approx(2 * (1 + 4) / 16)


def test_flips_are_items_that_change_class():
    found = metrics.flips(np.array([0, 1, 2, 2]), np.array([0, 2, 1, 2]))
    assert found.share == 0.5
    assert found.rows.tolist() == [1, 2]


def test_the_class_that_pays_more_than_twice_the_average_is_named():
    labels = np.repeat([0, 1, 2, 3], 100)
    before = labels.copy()
    after = labels.copy()
    after[:9] = 1  # class 0 loses 9 points
    after[100:102] = 2  # class 1 loses 2; the average is 11/400
    changes = metrics.class_changes(before, after, labels)
    assert [change.change for change in changes] == pytest.approx([-0.09, -0.02, 0, 0])
    assert [change.pays_too_much for change in changes] == [True, False, False, False]


def test_a_class_that_pays_for_a_gain_is_named():
    labels = np.repeat([0, 1], 100)
    before = np.where(np.arange(200) < 190, labels, 0)
    after = labels.copy()
    after[:5] = 1
    assert metrics.accuracy(after, labels) > metrics.accuracy(before, labels)
    assert [change.pays_too_much for change in metrics.class_changes(before, after, labels)] == [True, False]


def test_unequal_or_no_items_are_refused():
    with pytest.raises(ValueError, match="as many predictions as labels"):
        metrics.accuracy(np.array([1]), np.array([1, 0]))
    with pytest.raises(ValueError, match="as many predictions as labels"):
        metrics.accuracy(np.array([]), np.array([]))
