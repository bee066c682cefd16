"""CPU time and memory of a replica are those of its own process and of its children; the room on its disk."""

import shutil
import subprocess
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fewshard_serve.metrics import Metrics

CHILD = """
import time
held = bytearray(b"x") * 80_000_000
while time.process_time() < 0.5:
    pass
print("done", flush=True)
input()
"""


def use_of(children):
    return [
        value(name, children)
        for name in ("fewshard_process_cpu_seconds_total", "fewshard_process_resident_bytes")
    ]


def value(name, children=()):
    metrics = Metrics(children=lambda: children)
    families = text_string_to_metric_families(metrics.render().decode())
    found = {sample.name: sample.value for family in families for sample in family.samples}
    return found[name]


@pytest.fixture
def child():
    with subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as one:
        assert one.stdout.readline() == b"done\n"
        yield one
        one.kill()


def test_a_child_counts(child):
    (own_s, own_bytes), (both_s, both_bytes) = use_of([]), use_of([child.pid])
    assert 0.4 < both_s - own_s < 5
    assert 80e6 < both_bytes - own_bytes < 300e6


def test_the_room_on_rays_disk_is_read_at_each_scrape(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    free = shutil.disk_usage(tmp_path).free
    assert 0.5 * free < value("fewshard_disk_free_bytes") < 2 * free
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "missing"))
    assert value("fewshard_disk_free_bytes") == 0


def test_a_child_that_has_ended_counts_nothing_and_harms_nothing(child):
    child.kill()
    child.wait()
    (own_s, _), (both_s, both_bytes) = use_of([]), use_of([child.pid])
    assert both_s - own_s < 0.4
    assert both_bytes > 1e6
