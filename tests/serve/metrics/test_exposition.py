"""The text formats: what a parser of each reads is what was counted."""

import random

import numpy as np
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics_families
from prometheus_client.parser import text_string_to_metric_families

from fewshard_core.values import ModelInfo
from fewshard_serve.metrics import Metrics, ModelSource, cluster_text, merge_expositions

END = b"# EOF\n"


def busy(seed, name="m"):
    rng, metrics = random.Random(seed), Metrics()
    for _ in range(200):
        trace = f"{rng.getrandbits(128):032x}" if rng.random() < 0.1 else ""
        metrics.observe_request(name, "classify", rng.choice(["ok", "internal"]), rng.expovariate(50), trace)
    return metrics


def values(families):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
        if sample.name != "fewshard_process_cpu_seconds_total"
    }


def test_both_formats_say_the_same():
    metrics = busy(3)
    plain = values(text_string_to_metric_families(metrics.render({"replica": "r"}).decode()))
    text = metrics.render({"replica": "r"}, is_open_metrics=True) + END
    assert values(open_metrics_families(text.decode())) == plain


def test_exemplars_are_in_openmetrics_alone():
    metrics = busy(4)
    assert b"trace_id" not in metrics.render()
    families = open_metrics_families((metrics.render(is_open_metrics=True) + END).decode())
    found = [sample for family in families for sample in family.samples if sample.exemplar]
    assert found
    for sample in found:
        assert sample.name == "fewshard_request_seconds_bucket"
        assert len(sample.exemplar.labels["trace_id"]) == 32
        assert sample.exemplar.value <= float(sample.labels["le"])


@pytest.mark.parametrize("is_open", [False, True])
def test_a_merged_text_is_one_that_a_strict_parser_reads(is_open):
    parts = [busy(seed).render({"replica": f"r{seed}"}, is_open) for seed in range(3)]
    merged = merge_expositions([*parts, cluster_text({("a", "r0"): True}, {"a": 1}, is_open)])
    parse = open_metrics_families if is_open else text_string_to_metric_families
    families = list(parse((merged + END * is_open).decode()))
    assert len({family.name for family in families}) == len(families)
    assert len(values(families)) > 3 * 20


LABELS = {
    "two of one name": (("crane", "owl", "crane"), {"crane": 3.0, "owl": 2.0}),
    "one that is named like the sum": (("(other)", "owl", "(other)"), {"(other)": 3.0, "owl": 2.0}),
    "an empty name and a surrogate": (("", "\ud800", "x"), {"": 1.0, "?": 2.0, "x": 2.0}),
    "quotes, line ends and escapes": (('a"\n\\n', "\r", "\x00"), {'a"\n\\n': 1.0, "\r": 2.0, "\x00": 2.0}),
}


@pytest.mark.parametrize(("labels", "expected"), LABELS.values(), ids=LABELS)
def test_no_series_is_exposed_twice_whatever_the_labels_are_called(labels, expected):
    metrics = Metrics()
    info = ModelInfo("m", "text", "dense", labels, "single_label_classification", "a", "fp32", "cpu", 128)
    metrics.add_model(ModelSource(info, lambda: 0, lambda: 0, lambda: 1))
    metrics.observe_predictions("m", np.eye(3, dtype=np.float32)[[0, 1, 1, 2, 2]])
    text = merge_expositions([metrics.render(is_open_metrics=True)]) + END
    (predictions,) = (
        family for family in open_metrics_families(text.decode()) if family.name.endswith("_predictions")
    )
    assert {sample.labels["label"]: sample.value for sample in predictions.samples} == expected
