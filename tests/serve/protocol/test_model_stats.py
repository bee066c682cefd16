"""Statistics in Triton's shape, and their sum over replicas."""

import pickle

from fewshard_serve.core import BatchStats, Timings
from fewshard_serve.protocol.stats import ModelStatistics, merge


def batch(num_items: int, infer_s: float) -> BatchStats:
    return BatchStats("m", num_items, 10, 0, infer_s, (0.0,) * num_items)


def replica() -> ModelStatistics:
    stats = ModelStatistics()
    stats.add_request(0.010, Timings(preprocess_s=0.001, queue_s=0.002, infer_s=0.003), 0.004)
    stats.add_request(0.010, Timings(preprocess_s=0.001, queue_s=0.002, infer_s=0.003), 0.004)
    stats.add_failure(0.5)
    stats.add_batch(batch(3, 0.002))
    stats.add_batch(batch(1, 0.001))
    stats.add_batch(batch(3, 0.002))
    return stats


def test_counts_items_executions_and_stages() -> None:
    entry = replica().as_dict("m", "1")
    assert (entry["name"], entry["version"]) == ("m", "1")
    assert entry["inference_count"] == 7
    assert entry["execution_count"] == 3
    assert entry["last_inference"] > 1_600_000_000_000
    assert entry["inference_stats"] == {
        "success": {"count": 2, "ns": 20_000_000},
        "fail": {"count": 1, "ns": 500_000_000},
        "queue": {"count": 2, "ns": 4_000_000},
        "compute_input": {"count": 2, "ns": 2_000_000},
        "compute_infer": {"count": 2, "ns": 6_000_000},
        "compute_output": {"count": 2, "ns": 8_000_000},
        "cache_hit": {"count": 0, "ns": 0},
        "cache_miss": {"count": 0, "ns": 0},
    }
    assert [(each["batch_size"], each["compute_infer"]) for each in entry["batch_stats"]] == [
        (1, {"count": 1, "ns": 1_000_000}),
        (3, {"count": 2, "ns": 4_000_000}),
    ]


def test_a_model_that_did_nothing_has_zeros() -> None:
    entry = ModelStatistics().as_dict("m", "1")
    assert (entry["inference_count"], entry["last_inference"], entry["batch_stats"]) == (0, 0, [])


def test_merging_adds_replicas_and_changes_none() -> None:
    first, second = replica(), replica()
    second.add_batch(batch(8, 0.004))
    before = first.as_dict("m", "1")
    total = merge([first, second, ModelStatistics()]).as_dict("m", "1")
    assert total["inference_count"] == 22
    assert total["execution_count"] == 7
    assert total["inference_stats"]["success"] == {"count": 4, "ns": 40_000_000}
    assert total["last_inference"] == second.last_inference_ms
    assert first.as_dict("m", "1") == before


def test_statistics_travel_between_processes() -> None:
    assert pickle.loads(pickle.dumps(replica())).as_dict("m", "1")["inference_count"] == 7
