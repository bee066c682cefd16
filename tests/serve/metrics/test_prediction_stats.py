"""Predictions are counted exactly though late, and compared with what the card says of them."""

import threading

import numpy as np
import pytest

from fewshard_core.values import ModelInfo
from fewshard_serve.metrics.prediction_stats import (
    MAX_WAITING,
    MIN_DRIFT_ITEMS,
    WINDOW_ITEMS,
    PredictionStats,
    confidence_drift,
    label_drift,
)

SERVED = {"labels": {"no": 0.5, "yes": 0.5}, "confidence": {"0.6": 0.25, "0.9": 0.5}}


def tally(card=None, labels=("no", "yes")):
    info = ModelInfo(
        "m", "text", "dense", labels, "single_label_classification", "a", "fp32", "cpu", 1,
        card={"extra": {"served": SERVED}} if card is None else card,
    )  # fmt: skip
    return PredictionStats(info)


def logits(label, confidence, num_items=1):
    gap = np.log(confidence / (1 - confidence))
    return np.tile(np.array([0.0, gap] if label == "yes" else [gap, 0.0], np.float32), (num_items, 1))


def drifts(one):
    _, recent = one.read()
    return label_drift(recent, one.info), confidence_drift(recent, one.info)


def test_none_is_lost_between_threads():
    one = tally()
    each = 3 * MAX_WAITING + 7

    def say(label):
        for _ in range(each):
            one.add(logits(label, 0.7))

    threads = [threading.Thread(target=say, args=(label,)) for label in ("yes", "no", "yes", "yes")]
    for thread in threads:
        thread.start()
    for _ in range(20):
        one.read()
    for thread in threads:
        thread.join()
    total, _ = one.read()
    assert total.by_label.tolist() == [each, 3 * each]
    assert total.num_items == 4 * each
    assert total.confidence == pytest.approx(4 * each * 0.7)


def test_drift_is_the_distance_from_the_card():
    one = tally()
    one.add(logits("yes", 0.55, 300))
    one.add(logits("no", 0.95, 100))
    label, confidence = drifts(one)
    assert label == pytest.approx(0.25)
    assert confidence == pytest.approx(0.5), "at 0.6: 3 of 4 are below it, by the card 1 of 4"


def test_labels_of_one_name_drift_as_one():
    one = tally({"extra": {"served": {"labels": {"crane": 0.75, "cat": 0.25}}}}, ("crane", "cat", "crane"))
    one.add(np.eye(3, dtype=np.float32)[[0, 1, 2, 2] * 100])
    assert drifts(one)[0] == pytest.approx(0.0)


def test_little_said_or_a_card_without_figures_is_no_drift():
    one = tally()
    one.add(logits("yes", 0.7, MIN_DRIFT_ITEMS - 1))
    assert drifts(one) == (None, None)
    for card in ({}, {"extra": {}}, {"extra": None}, {"extra": {"served": 3}}):
        one = tally(card)
        one.add(logits("yes", 0.7, 1000))
        assert drifts(one) == (None, None)


def test_what_was_said_long_ago_is_forgotten():
    one = tally()
    one.add(logits("yes", 0.7, WINDOW_ITEMS))
    one.read()
    assert drifts(one)[0] == pytest.approx(0.5)
    for _ in range(2):
        one.add(logits("yes", 0.7, WINDOW_ITEMS // 2))
        one.add(logits("no", 0.7, WINDOW_ITEMS // 2))
        one.read()
    assert drifts(one)[0] == pytest.approx(0.0)
