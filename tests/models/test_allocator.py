"""Freed memory stays in the process: counted in page faults, which do not depend on what else runs."""

import subprocess
import sys

import pytest

CHURN = """
import resource, sys
import torch  # first, as in the process of the models
from fewshard_models.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(12):  # the heap grows through its padding for up to eight of them, then it repeats
    torch.ones(30_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.ones(30_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", CHURN, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_large_tensors_are_not_mapped_anew():
    usual, kept = page_faults("usual"), page_faults("keep")
    assert usual > 20 * 50
    assert kept < usual / 10
