"""The text formats: what a parser of each reads is what was counted."""

import random

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics_families
from prometheus_client.parser import text_string_to_metric_families

from fewshard_serve.metrics import Metrics, cluster_text, merge_expositions

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
