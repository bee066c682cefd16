"""Metrics are exact (replayed against plain sums), mergeable, and defined in one place."""

import os
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fewshard_core.values import ExpertCounts, ModelInfo
from fewshard_serve.core import BatchStats, GroupState, Timings
from fewshard_serve.expert_statistics import RoutingWindow
from fewshard_serve.metrics import (
    FAMILIES,
    SECONDS,
    CostSettings,
    Metrics,
    ModelSource,
    cluster_text,
    merge_expositions,
)

ROOT = Path(__file__).parents[3]

OTHER_NAMES = re.compile(
    r"fewshard_(core|kernels|models|serve|loadtest|text|image)(_.*)?"  # our packages, our `model_type`s
)


def info(name="m", problem_type="single_label_classification", labels=("no", "yes")):
    return ModelInfo(
        name=name,
        task="text",
        kind="moe",
        labels=labels,
        problem_type=problem_type,
        architecture="a",
        dtype="fp32",
        device="cpu",
        max_tokens=128,
    )


def source(model_info, routing=lambda: None, **reads):
    values = {"queue_items": lambda: 3, "inflight_items": lambda: 5, **reads}
    return ModelSource(info=model_info, admission_limit_items=lambda: 2048, routing=routing, **values)


def two_of_three():
    """One shard of three is missing; the others hold two experts and one, in both layers."""
    return GroupState(3, 2, 5, 1, 4, False, (((0, 1), (), (2,)),) * 2)


def two_layers():
    return ExpertCounts(
        tokens=np.array([[6, 2, 0], [1, 1, 1]]),
        probability=np.zeros((2, 3)),
        entropy=np.array([0.0, 3 * np.log(3)]),
        rows=np.array([8, 3]),
        top_k=1,
    )


def samples(text):
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, f"{key} appears twice"
            found[key] = sample.value
    return found


def value(text, name, **labels):
    return samples(text)[name, tuple(sorted(labels.items()))]


def test_counters_and_histograms_equal_a_replay():
    rng = random.Random(7)
    metrics = Metrics()
    requests, batches = [], []
    for _ in range(500):
        outcome = rng.choice(["ok", "overloaded", "unusable_item"])
        requests.append((rng.choice("ab"), rng.choice(["v2_json", "classify"]), outcome, rng.expovariate(20)))
        metrics.observe_request(*requests[-1])
        size, tokens, padding = rng.randint(1, 64), rng.randint(1, 4000), rng.randint(0, 99)
        batches.append(BatchStats(rng.choice("ab"), size, tokens, padding, 0.01, (0.0,) * size))
        metrics.observe_batch(batches[-1])
    text = metrics.render()
    for model in "ab":
        mine = [one for one in batches if one.model == model]
        assert value(text, "fewshard_items_total", model=model) == sum(one.num_items for one in mine)
        real = value(text, "fewshard_tokens_total", model=model, state="real")
        padding = value(text, "fewshard_tokens_total", model=model, state="padding")
        assert real == sum(one.num_tokens for one in mine)
        assert padding == sum(one.num_padding_tokens for one in mine)
        for name, field in (("fewshard_batch_items", "num_items"), ("fewshard_batch_tokens", "num_tokens")):
            total = sum(getattr(one, field) for one in mine)
            assert value(text, f"{name}_sum", model=model) == total
            assert value(text, f"{name}_count", model=model) == len(mine)
        seconds = [one[3] for one in requests if one[0] == model]
        for bound in SECONDS:
            below = value(text, "fewshard_request_seconds_bucket", model=model, le=str(bound))
            assert below == sum(one <= bound for one in seconds)
        assert value(text, "fewshard_request_seconds_sum", model=model) == pytest.approx(sum(seconds))
    for key in {one[:3] for one in requests}:
        labels = dict(zip(("model", "protocol", "outcome"), key, strict=True))
        same = sum(one[:3] == key for one in requests)
        assert value(text, "fewshard_requests_total", **labels) == same


def test_stages():
    metrics = Metrics()
    metrics.observe_timings("m", Timings(0.25, 0.5, 1.0))
    text = metrics.render()
    for stage, seconds in (("preprocess", 0.25), ("queue", 0.5), ("infer", 1.0)):
        assert value(text, "fewshard_stage_seconds_sum", model="m", stage=stage) == seconds


def test_seconds_begin_at_half_a_millisecond_in_steps_of_1_2_5():
    assert SECONDS[:5] == (0.0005, 0.001, 0.002, 0.005, 0.01)


def test_predictions_of_one_label():
    metrics = Metrics()
    metrics.add_model(source(info()))
    assert value(metrics.render(), "fewshard_predictions_total", model="m", label="yes") == 0
    metrics.observe_predictions("m", np.log(np.array([[0.2, 0.8], [0.55, 0.45], [1e-9, 1.0]], np.float32)))
    text = metrics.render()
    assert value(text, "fewshard_predictions_total", model="m", label="yes") == 2
    assert value(text, "fewshard_predictions_total", model="m", label="no") == 1
    assert value(text, "fewshard_confidence_bucket", model="m", le="0.6") == 1
    assert value(text, "fewshard_confidence_bucket", model="m", le="0.8") == 2
    assert value(text, "fewshard_confidence_bucket", model="m", le="+Inf") == 3
    assert value(text, "fewshard_confidence_count", model="m") == 3
    assert value(text, "fewshard_confidence_sum", model="m") == pytest.approx(2.35)


def test_predictions_of_many_labels_and_of_none():
    metrics = Metrics()
    metrics.add_model(source(info(problem_type="multi_label_classification", labels=("a", "b", "c"))))
    metrics.observe_predictions("m", np.array([[2.0, 0.0, -2.0], [-2.0, -2.0, -2.0]], np.float32))
    text = metrics.render()
    assert [value(text, "fewshard_predictions_total", model="m", label=one) for one in "abc"] == [1, 1, 0]


def test_a_regression_predicts_no_label():
    metrics = Metrics()
    metrics.add_model(source(info(problem_type="regression", labels=("score",))))
    metrics.observe_predictions("m", np.array([[3.7]], np.float32))
    assert value(metrics.render(), "fewshard_predictions_total", model="m", label="score") == 0


def test_gauges_are_read_when_scraped():
    queued = [3]
    metrics = Metrics()
    metrics.add_model(source(info(), queue_items=lambda: queued[0]))
    assert value(metrics.render(), "fewshard_queue_items", model="m") == 3
    queued[0] = 9
    text = metrics.render()
    assert value(text, "fewshard_queue_items", model="m") == 9
    assert value(text, "fewshard_inflight_items", model="m") == 5
    assert value(text, "fewshard_admission_limit_items", model="m") == 2048


def test_experts_are_copied_only_when_scraped():
    reads = []

    def read():
        reads.append(1)
        return two_layers()

    metrics = Metrics()
    metrics.add_model(source(info(), RoutingWindow(read).read))
    metrics.observe_batch(BatchStats("m", 1, 1, 0, 0.1, (0.0,)))
    assert not reads
    text = metrics.render()
    assert len(reads) == 1
    assert value(text, "fewshard_expert_tokens_total", model="m", layer="0", expert="1") == 2
    assert value(text, "fewshard_shard_tokens_total", model="m", layer="0", shard="0") == 8
    assert value(text, "fewshard_expert_imbalance_ratio", model="m", layer="0") == 6 / (8 / 3)
    assert value(text, "fewshard_router_entropy_ratio", model="m", layer="1") == pytest.approx(1.0)


def test_a_group_is_counted_by_shard():
    counts = replace(two_layers(), shard_tokens=np.array([[5, 0, 3], [1, 0, 2]]))
    metrics = Metrics()
    metrics.add_model(source(info(), RoutingWindow(lambda: counts).read, group=two_of_three))
    text = metrics.render()
    assert value(text, "fewshard_shard_tokens_total", model="m", layer="0", shard="2") == 3
    assert value(text, "fewshard_shard_tokens_total", model="m", layer="1", shard="1") == 0
    assert value(text, "fewshard_group_size", model="m") == 2
    assert value(text, "fewshard_group_reforms_total", model="m") == 1
    assert value(text, "fewshard_placement_moves_total", model="m") == 4


def test_a_failing_device_hides_nothing_else(caplog):
    def fail():
        raise RuntimeError("device lost")

    metrics = Metrics()
    metrics.add_model(source(info(), fail))
    assert value(metrics.render(), "fewshard_queue_items", model="m") == 3
    assert "cannot be read" in caplog.text


def busy_metrics(name="m"):
    """Every family with at least one sample."""
    metrics = Metrics()
    served = {"labels": {"no": 0.5, "yes": 0.5}, "confidence": {"0.5": 0.0, "0.9": 0.4}}
    figures = {"accuracy": 0.9, "macs": 1e6, "parameters_total": 7, "parameters_active": 5}
    card = {**figures, "extra": {"served": served}}
    reads = {"group": two_of_three, "sparsity": lambda: {0: 0.9}, "cost": CostSettings(1.0, 10.0)}
    metrics.add_model(source(replace(info(name), card=card), RoutingWindow(two_layers).read, **reads))
    large = RoutingWindow(lambda: ExpertCounts(*np.ones((2, 20, 99)), *np.ones((2, 20)), 1))
    metrics.add_model(source(replace(info(f"{name}-large"), card={}), large.read))
    metrics.observe_request(name, "classify", "ok", 0.01)
    metrics.observe_timings(name, Timings(0.1, 0.1, 0.1))
    metrics.observe_batch(BatchStats(name, 2, 30, 4, 0.1, (0.0, 0.0)))
    metrics.observe_predictions(name, np.array([[0.2, 0.8]] * 300, np.float32))
    metrics.observe_shadow(name, "other", "agree", 1)
    metrics.observe_cascade(name, {"a": 1}, 1.0, 2.0)
    metrics.observe_canary(name, "v2", "agree")
    metrics.observe_canary_step(name, "v2", "started", 0.01)
    return metrics


def whole_text(name="m"):
    """With what the gateway adds."""
    return merge_expositions([busy_metrics(name).render(), cluster_text({("a", "r"): True}, {"a": 1})])


def declared(text):
    """Name -> kind, from the TYPE lines; no name may be declared twice."""
    lines = re.findall(r"^# TYPE (\S+) (\S+)$", text.decode(), re.MULTILINE)
    assert len(lines) == len(dict(lines))
    return dict(lines)


def test_the_families_are_exactly_what_is_scraped():
    assert declared(whole_text()) == {family.name: family.kind for family in FAMILIES}


def test_every_sample_carries_the_labels_of_its_family():
    by_name = {family.name.removesuffix("_total"): set(family.labels) for family in FAMILIES}
    for family in text_string_to_metric_families(whole_text().decode()):
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == by_name[family.name]


def test_extra_labels_go_on_every_sample():
    text = busy_metrics().render({"application": "models", "replica": "r1"})
    assert all(("replica", "r1") in labels for _, labels in samples(text))


def test_merged_texts_hold_every_sample_once_and_one_type_each():
    parts = [busy_metrics().render({"application": "models", "replica": str(n)}) for n in range(3)]
    merged = merge_expositions(parts)
    assert declared(merged) == declared(parts[0])
    expected = {}
    for text in parts:
        expected |= samples(text)
    assert samples(merged) == expected
    assert len(expected) == 3 * len(samples(parts[0]))


def test_awkward_names_survive_merging():
    name = 'a "quoted" \\ back\nslash, {brace} #é'
    merged = merge_expositions([busy_metrics(name).render({"replica": 'r"1\\'})])
    assert value(merged, "fewshard_queue_items", model=name, replica='r"1\\') == 3
    assert samples(merge_expositions([merged])) == samples(merged)


def test_a_part_that_cannot_be_parsed_hides_no_other(caplog):
    good = busy_metrics().render()
    merged = merge_expositions([b"\xff not metrics {", b"neither {", good])
    assert len(samples(merged)) == len(samples(good))
    assert "left out" in caplog.text


def test_merging_nothing_is_an_empty_text():
    assert merge_expositions([]) == b""


def text_files():
    kinds = {".py", ".md", ".yaml", ".yml", ".json", ".html", ".js", ".toml", ".tpl", ".rules", ".txt"}
    for folder, subfolders, names in os.walk(ROOT):
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and name != "runs"]
        yield from (Path(folder, name) for name in names if Path(name).suffix in kinds)


def undefined_metrics(text):
    defined = {family.name for family in FAMILIES}
    for name in re.findall(r"(?<![\w.])fewshard_[a-z0-9_]+", text):
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        if not OTHER_NAMES.fullmatch(name) and base not in defined and name not in defined:
            yield name


def test_the_search_finds_an_undefined_metric():
    wrong = "fewshard" + "_made_up_total"
    assert list(undefined_metrics(f"rate({wrong}[5m]) / rate(fewshard_items_total[5m])")) == [wrong]


def test_no_metric_is_used_that_metrics_py_does_not_define():
    """A new metric belongs in `FAMILIES`; a name that is no metric belongs in `OTHER_NAMES`."""
    used = {
        str(path.relative_to(ROOT)): sorted(set(undefined_metrics(path.read_text("utf-8", "replace"))))
        for path in text_files()
    }
    assert {path: names for path, names in used.items() if names} == {}
