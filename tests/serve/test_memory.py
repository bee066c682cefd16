"""Freed memory goes back to the system, and not while it is in use."""

import subprocess
import sys

import pytest

from fewshard_serve.memory import Trimmer, can_trim

MB = 2**20


class Process:
    """A process of so many bytes, of which `freed` can be given back."""

    def __init__(self):
        self.used, self.freed, self.num_trims = 100 * MB, 0, 0

    def resident(self):
        return self.used + self.freed

    def trim(self):
        self.num_trims += 1
        self.freed = 0

    def trimmer(self):
        return Trimmer(self.resident, self.trim)


def test_a_process_is_trimmed_until_it_is_as_small_as_it_was():
    process = Process()
    trimmer = process.trimmer()
    process.freed = 50 * MB
    for _ in range(3):
        trimmer.look()
    assert (process.num_trims, process.freed) == (1, 0), "what starting has left"
    process.used += 900 * MB
    trimmer.look()
    process.used, process.freed = 101 * MB, 899 * MB
    trimmer.look()
    assert process.resident() == 101 * MB
    trimmer.look()
    assert process.num_trims == 3


LARGE = """
import threading
from fewshard_serve.memory import give_back_freed, resident_bytes

give_back_freed()
before = resident_bytes()

def parse():
    for size in (1, 2, 4, 8, 16, 30):
        bytes(size * 2**20)

for _ in range(4):
    thread = threading.Thread(target=parse)
    thread.start()
    thread.join()
print(before, resident_bytes())
"""


FRAGMENTED = """
import threading
from fewshard_serve.memory import Trimmer, resident_bytes

kept = []

def fill():
    blocks = [bytes(60_000) for _ in range(1000)]
    kept.append(blocks[::50])

trimmer = Trimmer()
for _ in range(3):
    thread = threading.Thread(target=fill)
    thread.start()
    thread.join()
freed = resident_bytes()
trimmer.look()
print(freed, resident_bytes())
"""


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return map(int, done.stdout.split())


@pytest.mark.skipif(not can_trim(), reason="needs glibc")
def test_large_blocks_go_back_at_once():
    before, after = run(LARGE)
    assert after - before < 10 * MB


@pytest.mark.skipif(not can_trim(), reason="needs glibc")
def test_what_lies_between_blocks_in_use_is_given_back():
    freed, left = run(FRAGMENTED)
    assert freed - left > 30 * MB
