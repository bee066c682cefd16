"""The window over the routing counters, and the ratios drawn from it."""

import numpy as np
import pytest

from fewshard_core.values import Diagnosis, ExpertCounts
from fewshard_serve.expert_statistics import (
    RoutingWindow,
    entropy_ratio,
    expert_use_ratio,
    imbalance_ratio,
    merge_routing,
    num_dead_experts,
)
from fewshard_serve.protocol.experts import describe_diagnoses, describe_routing


def counts(tokens, entropy=None, top_k=1):
    tokens = np.array(tokens, np.int64)
    rows = tokens.sum(axis=1) // top_k
    return ExpertCounts(
        tokens=tokens,
        probability=tokens / 2,
        entropy=np.zeros(len(tokens)) if entropy is None else np.array(entropy, np.float64),
        rows=rows,
        top_k=top_k,
    )


class Device:
    """A clock and counters that a test moves by hand."""

    def __init__(self):
        self.now = 500.0
        self.tokens = np.zeros((1, 4), np.int64)
        self.num_reads = 0

    def clock(self):
        return self.now

    def read(self):
        self.num_reads += 1
        return counts(self.tokens.copy())

    def window(self, window_s=60.0):
        return RoutingWindow(self.read, window_s, self.clock)


def test_the_window_begins_with_the_model():
    device = Device()
    window = device.window()
    device.tokens += 5
    device.now += 7
    routing = window.read()
    assert routing.window.tokens.tolist() == routing.total.tokens.tolist() == [[5, 5, 5, 5]]
    assert routing.window_s == 7


def test_the_window_forgets_what_is_older_than_itself():
    device = Device()
    window = device.window(60)
    for _ in range(300):  # one token each second, read each second
        device.tokens[0, 0] += 1
        device.now += 1
        routing = window.read()
    assert routing.total.tokens[0, 0] == 300
    assert 60 <= routing.window.tokens[0, 0] <= 66
    assert routing.window_s == routing.window.tokens[0, 0]
    assert len(window._marks) < 20


def test_a_window_nobody_read_is_longer_and_says_so():
    device = Device()
    window = device.window(60)
    window.read()
    device.now += 1000
    device.tokens += 1
    assert window.read().window_s == 1000


def test_a_model_without_experts():
    assert RoutingWindow(lambda: None).read() is None


def test_reading_is_the_only_thing_that_touches_the_device():
    device = Device()
    window = device.window()
    assert device.num_reads == 0
    window.read()
    assert device.num_reads == 1


def test_ratios():
    four = counts([[10, 0, 0, 0], [5, 5, 5, 5], [0, 0, 0, 0]], entropy=[0.0, 20 * np.log(4), 0.0])
    assert imbalance_ratio(four)[:2].tolist() == [4.0, 1.0]
    assert entropy_ratio(four)[:2] == pytest.approx([0.0, 1.0])
    assert np.isnan(imbalance_ratio(four)[2])
    assert np.isnan(entropy_ratio(four)[2])


def test_one_expert_divides_by_no_zero():
    assert entropy_ratio(counts([[7]])).tolist() == [0.0]


def test_replicas_add_up():
    device = Device()
    device.tokens += 3
    first = device.window().read()
    device.tokens += 1
    device.now += 9
    second = device.window().read()
    both = merge_routing([first, second])
    assert both.total.tokens.tolist() == [[7, 7, 7, 7]]
    assert both.total.rows.tolist() == [28]
    assert both.window_s == max(first.window_s, second.window_s)


def test_the_description_names_dead_experts_and_hides_nan():
    device = Device()
    device.tokens[:] = [[6, 2, 0, 0]]
    described = describe_routing(device.window().read())
    (layer,) = described["layers"]
    assert layer["dead_experts"] == [2, 3]
    assert layer["imbalance_ratio"] == 3.0
    assert layer["shard_tokens"] == [8]
    device.tokens[:] = 0
    (idle,) = describe_routing(device.window().read())["layers"]
    assert idle["imbalance_ratio"] is None
    assert idle["dead_experts"] == []


def test_tokens_by_class_are_summed_over_replicas():
    first = Diagnosis(2, (0.5,), np.array([[[1, 2]], [[3, 4]]]))
    parts = [first, Diagnosis(1, (0.5,), np.array([[[0, 5]], [[0, 0]]]))]
    assert describe_diagnoses([], ["no", "yes"]) == {}
    assert describe_diagnoses(parts, ["no", "yes"]) == {
        "class_items_sampled": 3,
        "class_tokens": {"no": [[1, 7]], "yes": [[3, 4]]},
    }


def test_classes_of_one_name_are_summed_up():
    part = Diagnosis(2, (0.5,), np.array([[[1, 2]], [[3, 4]], [[5, 6]]]))
    described = describe_diagnoses([part], ["crane", "cat", "crane"])
    assert described["class_tokens"] == {"crane": [[6, 8]], "cat": [[3, 4]]}


def test_use_is_the_perplexity_of_the_load_over_the_experts():
    counts = ExpertCounts(
        tokens=np.array([[4, 4, 4, 4], [9, 0, 0, 0], [0, 0, 0, 0]]),
        probability=np.zeros((3, 4)),
        entropy=np.zeros(3),
        rows=np.array([16, 9, 0]),
        top_k=1,
    )
    assert expert_use_ratio(counts)[:2].tolist() == pytest.approx([1.0, 0.25])
    assert np.isnan(expert_use_ratio(counts)[2])
    assert num_dead_experts(counts)[:2].tolist() == [0, 3]
    assert np.isnan(num_dead_experts(counts)[2])
