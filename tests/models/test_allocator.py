"""Freed memory stays in the process: counted in page faults, which do not depend on what else runs."""

import subprocess
import sys
from pathlib import Path

import pytest

# By its path, since its package imports transformers, which takes longer than all else here.
ALLOCATOR = Path(__file__).parents[2] / "models/fewshard_models/allocator.py"
CHURN = """
import resource, runpy, sys
if sys.argv[1] == "keep":
    runpy.run_path(sys.argv[2])["keep_freed_memory"]()
import torch
for _ in range(3):
    torch.ones(10_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(10_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode: str) -> int:
    command = [sys.executable, "-c", CHURN, mode, str(ALLOCATOR)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_large_tensors_are_not_mapped_anew():
    usual, kept = page_faults("usual"), page_faults("keep")
    assert usual > 10 * 16, "40 MB ten times, above glibc's 32 MB; even pages of 2 MB are 19 a time"
    assert kept < usual / 10
