"""The series of a replica stay within the bound, whatever it serves."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from fewshard_core.values import ExpertCounts, ModelInfo
from fewshard_serve.core import BatchStats, GroupState, Timings
from fewshard_serve.errors import ServeError
from fewshard_serve.expert_statistics import RoutingWindow, worst_layers
from fewshard_serve.metrics import CostSettings, Metrics, MetricsSettings, ModelSource
from fewshard_serve.metrics.cardinality_limit import (
    GAUGES_A_LAYER,
    MODEL_SERIES,
    OTHER,
    REPLICA_SERIES,
    SMALL,
    SeriesLimit,
    Shape,
    limit_series,
)
from fewshard_serve.protocol.experts import describe_routing

HOST_PROTOCOLS = ("v2_json", "v2_binary", "classify", "tei", "explain", "rerank")
OF_NO_PREDICTION = {"bad_config", "cannot_start", "change_refused", "client", "update_failed"}
EARLY = {"unknown_model", "unloaded", "unauthorized", "forbidden", "", *OF_NO_PREDICTION}
SETTINGS = MetricsSettings()


def outcomes():
    """Those of requests whose model was found."""
    below = [ServeError]
    for kind in below:
        below.extend(kind.__subclasses__())
    return {"ok", *(kind.code for kind in below)} - EARLY


def counts(layers, experts, shards=1):
    tokens = np.ones((layers, experts), np.int64)
    by_shard = np.ones((layers, shards), np.int64)
    return ExpertCounts(tokens, tokens * 1.0, np.ones(layers), np.ones(layers, np.int64), 1, by_shard)


def add(metrics, name, num_labels=2, routed=None, num_shards=1):
    """A model of which every family has all the samples it can have."""
    labels = tuple(f"label {n}" for n in range(num_labels))
    served = {"labels": {labels[0]: 1.0}, "confidence": {"0.5": 0.0}}
    figures = {"accuracy": 0.9, "macs": 1, "parameters_total": 1, "parameters_active": 1}
    card = {**figures, "extra": {"served": served}}
    info = ModelInfo(
        name, "text", "moe", labels, "single_label_classification", "a", "fp32", "cpu", 128, card=card
    )
    num_layers = 0 if routed is None else len(routed.tokens)
    metrics.add_model(
        ModelSource(
            info,
            queue_items=lambda: 1,
            inflight_items=lambda: 1,
            admission_limit_items=lambda: 1,
            routing=RoutingWindow(lambda: routed).read,
            group=lambda: GroupState(num_shards, 1, 1, 1, 1, False, ()),
            sparsity=lambda: dict.fromkeys(range(num_layers), 0.5),
            cost=CostSettings(1.0, 1.0),
        )
    )
    for protocol, outcome in itertools.product(HOST_PROTOCOLS, outcomes()):
        metrics.observe_request(name, protocol, outcome, 0.1)
    metrics.observe_timings(name, Timings(1, 1, 1))
    metrics.observe_batch(BatchStats(name, 1, 1, 1, 0.1, (0.1,)))
    metrics.observe_predictions(name, np.zeros((300, num_labels), np.float32))
    for outcome in ("agree", "disagree", "failed", "skipped"):
        metrics.observe_shadow(name, "other", outcome, 1)
    for outcome in ("agree", "flip", "failed", "skipped"):
        metrics.observe_canary(name, "v2", outcome)
    for step in ("started", "raised", "promoted", "rolled_back"):
        metrics.observe_canary_step(name, "v2", step, 0.5)


def series(metrics):
    return [line for line in metrics.render().decode().splitlines() if not line.startswith("#")]


def test_what_every_model_has_is_counted_right():
    metrics = Metrics()
    for protocol, outcome in itertools.product(HOST_PROTOCOLS, EARLY - OF_NO_PREDICTION):
        metrics.observe_request("unknown", protocol, outcome, 0.1)
    alone = len(series(metrics))
    assert REPLICA_SERIES - 20 <= alone <= REPLICA_SERIES
    add(metrics, "m", num_labels=2)
    assert MODEL_SERIES - 12 <= len(series(metrics)) - alone - 2 <= MODEL_SERIES


def test_seven_small_models_are_told_in_full():
    metrics = Metrics()
    shapes = [(2, None), (2, counts(6, 21)), (10, None), (10, None), (10, None), (2, None), (2, None)]
    for n, (num_labels, routed) in enumerate(shapes):
        add(metrics, f"m{n}", num_labels, routed)
    found = series(metrics)
    assert len(found) <= SETTINGS.max_series
    assert sum("fewshard_expert_tokens_total" in line for line in found) == 6 * 21
    assert not [line for line in found if OTHER in line]


def test_large_models_beside_them_stay_within_the_bound():
    metrics = Metrics()
    for n, (num_labels, routed) in enumerate([(2, None)] * 5 + [(10_000, None), (2, counts(40, 64))]):
        add(metrics, f"m{n}", num_labels, routed)
    found = series(metrics)
    assert len(found) <= SETTINGS.max_series
    assert [OTHER in line for line in found].count(True) == 1
    shown = [line for line in found if "predictions" in line and 'model="m5"' in line]
    assert sum(float(line.split()[-1]) for line in shown) == 300, "none is lost"
    assert any("fewshard_shard_tokens_total" in line for line in found), "experts are summed by shard"


def test_a_model_of_64_layers_and_128_experts():
    """Every expert's total, the worst layers in full, and nothing beyond the bound."""
    tokens = np.random.default_rng(0).integers(90, 110, (64, 128))
    tokens[[3, 40], 5] = 9000, 5000
    tokens[11] = 0
    routed = ExpertCounts(tokens, tokens * 1.0, np.ones(64), tokens.sum(axis=1) // 8, 8)
    metrics = Metrics()
    add(metrics, "large", 2, routed)
    found = series(metrics)
    assert 1500 < len(found) <= SETTINGS.max_series
    totals = [line for line in found if line.startswith("fewshard_expert_tokens_total")]
    assert len(totals) == 128
    assert all('layer="(all)"' in line for line in totals)
    assert sum(float(line.split()[-1]) for line in totals) == tokens.sum()
    shares = [line for line in found if line.startswith("fewshard_expert_share_ratio")]
    assert len(shares) == 8 * 128
    assert any('expert="5",layer="3"' in line for line in shares)
    assert any('expert="5",layer="40"' in line for line in shares)
    assert not any('layer="11"' in line for line in shares), "nothing was routed there"
    body = describe_routing(RoutingWindow(lambda: routed).read())
    assert [layer["tokens_total"] for layer in body["layers"]] == tokens.tolist()


def test_the_worst_layers_come_first():
    tokens = np.array([[1, 1], [3, 1], [0, 0], [5, 0]])
    routed = ExpertCounts(tokens, tokens * 1.0, np.ones(4), tokens.sum(axis=1), 1)
    assert worst_layers(routed, 2) == [3, 1]
    assert worst_layers(routed, 9) == [3, 1, 0]
    assert worst_layers(routed, 0) == []


def test_details_are_kept_where_there_is_room():
    assert limit_series([Shape(10, 6, 21, 1)], SETTINGS) == [SeriesLimit(10, tuple(range(6)))]
    assert limit_series([], SETTINGS) == []


def test_experts_are_all_told_apart_or_summed_up():
    (detail,) = limit_series([Shape(2, 32, 64, 1)], SETTINGS)
    assert detail == SeriesLimit(2, (), sums_experts=True, num_worst_layers=8)
    (detail,) = limit_series([Shape(2, 32, 64, 1)], replace(SETTINGS, max_series=600))
    assert detail == SeriesLimit(2, (), sums_experts=True, num_worst_layers=0)
    (detail,) = limit_series([Shape(2, 32, 64, 1)], replace(SETTINGS, max_series=520))
    assert detail == SeriesLimit(2, ())
    (detail,) = limit_series([Shape(2, 32, 64, 1)], replace(SETTINGS, expert_layers=(0, 31, 99)))
    assert detail == SeriesLimit(2, (0, 31))
    (detail,) = limit_series([Shape(2, 2, 4, 1)], replace(SETTINGS, experts="shard"))
    assert detail == SeriesLimit(2, ())


@pytest.mark.parametrize("num_labels", [1, 2, 100, 799, 10_000])
def test_labels_take_half_of_the_room_at_most(num_labels):
    (detail,) = limit_series([Shape(num_labels)], SETTINGS)
    room = SETTINGS.max_series - REPLICA_SERIES - MODEL_SERIES
    assert detail.num_labels == (num_labels if num_labels <= room // 2 else detail.num_labels)
    assert detail.num_labels + (detail.num_labels < num_labels) <= max(room // 2, 1)


def test_a_hundred_models_have_their_sum_and_no_more():
    details = limit_series([Shape(50, 4, 8, 1)] * 100, SETTINGS)
    assert set(details) == {SeriesLimit(0, ())}, "(other) alone"
    assert GAUGES_A_LAYER == 5


@pytest.mark.parametrize("num_models", [1, 7, 8, 9, 12, 40])
def test_few_labels_and_experts_are_told_apart_however_many_models_there_are(num_models):
    details = limit_series([Shape(2)] * (num_models - 1) + [Shape(2, 3, 4, 1)], SETTINGS)
    assert {detail.num_labels for detail in details} == {2}
    assert details[-1].expert_layers == (0, 1, 2)


def test_a_large_model_among_many_small_ones_gets_what_is_left():
    details = limit_series([Shape(SMALL)] * 6 + [Shape(1000)], SETTINGS)
    assert [detail.num_labels for detail in details[:-1]] == [SMALL] * 6
    left = SETTINGS.max_series - REPLICA_SERIES - 7 * MODEL_SERIES - 6 * SMALL
    assert 0.9 * left // 2 < details[-1].num_labels < left // 2


def test_what_is_cut_is_logged_once(caplog):
    metrics = Metrics()
    for n in range(9):
        add(metrics, f"m{n}", 2)
    add(metrics, "large", 1000, counts(10, 64))
    series(metrics)
    series(metrics)
    (record,) = caplog.records
    assert "large: in /metrics 1000 of 1000 labels are summed up as (other)" in record.message
    assert "experts have no series; raise metrics.max_series" in record.message
