"""Latencies that the generator reports, held against a simulation of the very arrivals that it recorded.

The server takes a known time for each request, one after the other, so that every latency follows from the
send times alone (Lindley 1952).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from fewshard_loadtest import Plan, run_recorded
from fewshard_loadtest.measure import nearest_rank
from fewshard_loadtest.samples_file import Recording

LATE_SHARE = 0.1


def simulate(sent_s: np.ndarray, service_s: float) -> np.ndarray:
    """The latency of each request, in seconds."""
    free_at, latencies = -np.inf, []
    for sent in sent_s:
        free_at = max(free_at, sent) + service_s
        latencies.append(free_at - sent)
    return np.array(latencies)


@pytest.mark.slow
@pytest.mark.parametrize(("service_ms", "seconds"), [(20.0, 40.0), (400.0, 60.0)])
@pytest.mark.parametrize("utilisation", [0.5, 0.8])
def test_percentiles_are_those_of_the_simulation(
    simulated: Callable[[dict[str, Any]], str],
    texts: Path,
    tmp_path: Path,
    utilisation: float,
    service_ms: float,
    seconds: float,
) -> None:
    """Within 5 % + 1 ms. The short service time needs a machine that wakes processes in time."""
    url = simulated({"m": {"ms": service_ms}})
    rate = utilisation * 1000 / service_ms
    plan = Plan(url, "m", payload=str(texts), rate=rate, duration_s=seconds, warmup_s=1.0, seed=3)
    result = run_recorded(plan, tmp_path / "a.npz")
    late_ms = httpx.get(f"{url}/late").json()
    if max(late_ms, result.lag_p99_ms or 0.0) > LATE_SHARE * service_ms:
        pytest.skip(
            f"this machine is too busy: server {late_ms:.1f} ms, generator {result.lag_p99_ms} ms late"
        )
    recording = Recording.load(tmp_path / "a.npz")
    sent = recording.rows["sent_s"]
    expected = simulate(sent, service_ms / 1000)[(sent >= 0) & (sent < recording.measured_s)]
    measured = recording.latencies_ms()
    assert len(measured) == len(expected) == pytest.approx(rate * seconds, rel=0.35)
    for share in (0.5, 0.99):
        wanted = nearest_rank(np.sort(1000 * expected), share)
        assert wanted is not None
        assert nearest_rank(measured, share) == pytest.approx(wanted, abs=1.0 + 0.05 * wanted)


def test_the_simulation_is_a_queue() -> None:
    assert simulate(np.array([0.0, 1.0, 1.1, 5.0]), 1.0).tolist() == pytest.approx([1.0, 1.0, 1.9, 1.0])
