"""The watch on routing: silent while all experts are used, loud when one starves."""

import math

import pytest
import torch

from fewshard_kernels import MoeStats, route_groups
from fewshard_models.sparsify.observers import RouterMonitor


def stats(*rows: int) -> MoeStats:
    return MoeStats(torch.tensor(rows), torch.tensor(rows).float(), torch.tensor(50.0), torch.tensor(0.0))


def heard(*layers: MoeStats, steps: int = 6) -> list[str]:
    said: list[str] = []
    watch = RouterMonitor(every=3, say=said.append)
    for _ in range(steps):
        watch.see(layers)
    return said


def test_balanced_and_dense_models_are_passed_over():
    assert heard(stats(30, 25, 20, 25)) == []
    assert heard() == []


def test_a_dead_and_a_starving_expert_are_named_once_a_window():
    said = heard(stats(25, 25, 25, 25), stats(97, 0, 3, 0))
    assert len(said) == 2
    assert "layer 1: expert 1 is dead, expert 2 gets 3.0%, expert 3 is dead" in said[0]
    assert "fair share 25.0%" in said[0]
    assert "entropy 36% of the maximum" in said[0]


def test_windows_are_summed():
    said: list[str] = []
    watch = RouterMonitor(every=2, say=said.append)
    watch.see([stats(100, 0)])
    watch.see([stats(0, 100)])
    assert said == []


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_the_entropy_is_a_mean_over_tokens_however_many_experts_each_has(top_k: int) -> None:
    """The router gives each of two experts one half, so its entropy is log(2) of at most log(4)."""
    router = torch.tensor([[3.0], [3.0], [-30.0], [-30.0]])
    _, routed = route_groups(torch.ones(100, 1), torch.ones(100, dtype=torch.int64), router, top_k=top_k)
    monitor = RouterMonitor(every=2)
    monitor.see([routed])
    (line,) = monitor.findings()
    assert f"router entropy {math.log(2) / math.log(4):.0%} of the maximum" in line
