"""Shard or copy, against sums done by hand."""

from dataclasses import replace

import numpy as np
import pytest

from fewshard_models.sharding import contiguous
from fewshard_serve.placement.cost_model import collective_s, shard_or_copy
from fewshard_serve.placement.loads import uniform
from fewshard_serve.placement.machine import ExpertShape, Machine

# Round numbers: an expert is 16 MB, which take 16 us to read; a row is 16 MFLOP.
SHAPE = ExpertShape(hidden=1000, intermediate=4000, matrices=2, bytes_per_weight=2.0, top_k=1, tokens=1000)
MACHINE = Machine(
    memory_gb_s=1000, link_gb_s=100, network_gb_s=10, latency_us=10, compute_tflops=1e9, memory_gb=10
)


def verdict(shards=4, experts=64, layers=3, nodes=1, shape=SHAPE, machine=MACHINE):
    placement = contiguous(layers, experts, shards, -(-experts // shards))
    return shard_or_copy(uniform(layers, experts), placement, nodes, shape, machine)


def test_reading_weights_against_two_collectives():
    """All experts are hit, so each GPU reads 64 of them, or 16; 2 MB blocks of three others take 60 us."""
    found = verdict()
    assert found.copy_s == pytest.approx(3 * 64 * 16e-6, rel=1e-4)
    assert found.collectives_s == pytest.approx(3 * 2 * (10e-6 + 60e-6))
    assert found.shard_s == pytest.approx(3 * 16 * 16e-6 + found.collectives_s, rel=1e-4)
    assert found.copy_bytes == 3 * 64 * 16e6
    assert found.shard_bytes == 3 * 16 * 16e6
    assert found.shard
    assert "2.59x" in found.reason


def test_few_experts_are_not_worth_two_collectives():
    found = verdict(experts=8)
    assert found.copy_s == pytest.approx(3 * 8 * 16e-6, rel=1e-4)
    assert not found.shard
    assert found.reason.startswith("copy the whole model")


def test_what_does_not_fit_is_sharded_whatever_it_takes():
    found = verdict(experts=8, machine=replace(MACHINE, memory_gb=0.3))
    assert found.shard
    assert not found.fits_as_copy
    assert "do not fit" in found.reason


def test_products_bind_where_rows_are_many():
    """1000 rows of 16 MFLOP at 1 TFLOP/s take 16 ms either way; an uneven load takes more when sharded."""
    slow = replace(MACHINE, compute_tflops=1)
    even = verdict(machine=slow)
    assert even.copy_s == pytest.approx(3 * 16e-3)
    assert even.shard_s - even.collectives_s == pytest.approx(3 * 16e-3)
    loads = np.ones((3, 64))
    loads[:, :16] = 5
    uneven = shard_or_copy(loads, contiguous(3, 64, 4, 16), 1, SHAPE, slow)
    assert uneven.shard_s - uneven.collectives_s == pytest.approx(3 * 16e-3 * 4 * 80 / 128)


def test_experts_that_nobody_asks_for_are_not_read():
    few = replace(SHAPE, tokens=8)
    hit = 64 * (1 - np.exp(-8 / 64))
    assert verdict(shape=few).copy_s == pytest.approx(3 * hit * 16e-6)


@pytest.mark.parametrize(
    ("shards", "nodes", "expected"),
    [
        (1, 1, 0.0),
        (4, 1, 10e-6 + 3 * 20e-6),
        (4, 4, 10e-6 + 3 * 200e-6),
        (8, 2, 20e-6 + 1 * 200e-6 + 6 * 20e-6),
    ],
)
def test_a_collective_crosses_the_network_once_for_each_other_node(shards, nodes, expected):
    assert collective_s(shards, nodes, SHAPE, MACHINE) == pytest.approx(expected)
