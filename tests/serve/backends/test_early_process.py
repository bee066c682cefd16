"""A models' process that waits for its replica: taken over once, replaced when it dies, never left behind."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from fewshard_core.values import TextInput
from fewshard_serve.backends.child_process import OWN_LOADER, Loading
from fewshard_serve.backends.early_process import early_process, socket_path, take_over
from fewshard_serve.backends.process import ModelProcess, environment
from fewshard_serve.errors import ModelRestarted

TAKES = """
import sys
from fewshard_serve.backends.early_process import take_over
process, connection = take_over(sys.argv[1])
print(process.pid)
"""

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="it asks who is at the other end as Linux does"
)


@pytest.fixture
def path():
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # the path of a socket is limited
        yield socket_path(folder, "models")


def wait_until(condition):
    give_up_at = time.monotonic() + 60
    while not condition() and time.monotonic() < give_up_at:
        time.sleep(0.05)
    assert condition()


def children():
    """The numbers of this process's children that have not ended."""
    return {each.pid for each in psutil.Process().children() if each.status() != psutil.STATUS_ZOMBIE}


def test_it_is_taken_over_once_and_replaced_when_it_dies(path):
    before = children()
    with early_process(path, environment(1)):
        (early,) = children() - before
        wait_until(lambda: os.path.exists(path))
        process = ModelProcess(1, path)
        try:
            assert process.pid == early
            model = process.load(Loading(OWN_LOADER, "m", "zoo:sst2-narrow", "cpu", "fp32"))
            items = model.prepare([TextInput("a warm film")])
            logits = model.run(items).logits
            assert not Path(path).exists()
            assert take_over(path) is None
            psutil.Process(early).kill()
            with pytest.raises(ModelRestarted, match="has ended"):
                model.run(items)
            assert process.pid != early
            assert (model.run(items).logits == logits).all()
        finally:
            process.close()
    assert children() <= before


def test_it_ends_with_whoever_took_it_over(path):
    with early_process(path, environment(1)):
        wait_until(lambda: os.path.exists(path))
        done = subprocess.run([sys.executable, "-c", TAKES, path], capture_output=True, text=True, check=True)
        wait_until(lambda: not psutil.pid_exists(int(done.stdout)))


def test_it_ends_if_nobody_comes(path):
    before = children()
    with early_process(path, environment(1)):
        wait_until(lambda: os.path.exists(path))
        assert children() - before
    assert not children() - before


@pytest.mark.parametrize("folder", ["", "/tmp/" + "long" * 30])
def test_without_a_place_to_wait_none_starts(folder):
    before = children()
    with early_process(socket_path(folder, "models"), environment(1)):
        assert children() <= before
    assert take_over("") is None
