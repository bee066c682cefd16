"""Latencies that the generator reports, held against a simulation of the very arrivals that it recorded.

The server takes a known time for each request, one after the other, so that every latency follows from the
send times alone (Lindley 1952).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewshard_loadtest import Plan, run_recorded
from fewshard_loadtest.recording import Recording
from fewshard_loadtest.report.statistics import nearest_rank

SERVICE_MS = 20.0


def simulate(sent_s: np.ndarray, service_s: float) -> np.ndarray:
    """The latency of each request, in seconds."""
    free_at, latencies = -np.inf, []
    for sent in sent_s:
        free_at = max(free_at, sent) + service_s
        latencies.append(free_at - sent)
    return np.array(latencies)


@pytest.mark.slow
@pytest.mark.parametrize("utilisation", [0.5, 0.8])
def test_percentiles_are_those_of_the_simulation(
    simulated: Callable[[dict[str, Any]], str], texts: Path, tmp_path: Path, utilisation: float
) -> None:
    url = simulated({"m": {"ms": SERVICE_MS}})
    rate = utilisation * 1000 / SERVICE_MS
    plan = Plan(url, "m", payload=str(texts), rate=rate, duration_s=40.0, warmup_s=1.0, seed=3)
    run_recorded(plan, tmp_path / "a.npz")
    recording = Recording.load(tmp_path / "a.npz")
    expected = simulate(recording.rows["sent_s"], SERVICE_MS / 1000)[recording.rows["sent_s"] >= 0]
    measured = recording.latencies_ms()
    assert len(measured) == pytest.approx(rate * 40, rel=0.2)
    for share in (0.5, 0.99):
        wanted = nearest_rank(np.sort(1000 * expected), share)
        assert nearest_rank(measured, share) == pytest.approx(wanted, rel=0.05, abs=1.0 + 0.05 * wanted)


def test_the_simulation_is_a_queue() -> None:
    assert simulate(np.array([0.0, 1.0, 1.1, 5.0]), 1.0).tolist() == pytest.approx([1.0, 1.0, 1.9, 1.0])
