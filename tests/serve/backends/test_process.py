"""Models in a process of their own: the same answers, every error, and a process that dies."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fewshard_core.values import EncodedImage, TextInput
from fewshard_models.checkpoint import ZOO
from fewshard_models.classifier.base import CountsExperts
from fewshard_models.errors import UnusableInput
from fewshard_serve.backends.child_process import Loading
from fewshard_serve.backends.load import load_model
from fewshard_serve.backends.process import ModelProcess, ProcessEnded
from fewshard_serve.errors import DeadlineExceeded, ModelRestarted, NotReady

FAKES = str(Path(__file__).parents[1] / "rayserve")


SUBNORMAL = """
import torch
from fake_models import FakeModel

class Model(FakeModel):
    def logits(self, text):
        return [float(torch.tensor(1e-30) * 1e-10)] * 2

def load_model(name, path, device, dtype):
    return Model(name, path)
"""


@pytest.fixture(scope="module")
def lasting():
    """One for the tests that do it no harm."""
    process = ModelProcess(num_threads=1)
    yield process
    process.close()


@pytest.fixture
def process(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, FAKES])
    process = ModelProcess(num_threads=1)
    yield process
    process.close()


def fake(process, kind="dense"):
    return process.load(Loading("fake_models:load_model", "m", kind, "cpu", "fp32"))


def real(process, name):
    return process.load(
        Loading("fewshard_serve.backends.load:load_model", name, f"zoo:{name}", "cpu", "fp32")
    )


def run(model, *texts):
    return model.run(model.prepare([TextInput(text) for text in texts])).logits.tolist()


@pytest.mark.parametrize("name", sorted(folder.name for folder in ZOO.iterdir()))
def test_a_model_answers_as_in_this_process(lasting, name, png):
    here, there = load_model(name, f"zoo:{name}", "cpu", "fp32"), real(lasting, name)
    assert there.info == here.info
    inputs = (
        [EncodedImage(png)] if here.info.task == "image" else [TextInput("fine"), TextInput("not at all")]
    )
    assert there.estimate_tokens(inputs) == here.estimate_tokens(inputs)
    items = there.prepare(inputs)
    np.testing.assert_allclose(there.run(items).logits, here.run(here.prepare(inputs)).logits, atol=1e-5)
    counts = there.expert_counts()
    expected = here.expert_counts() if isinstance(here, CountsExperts) else None
    assert (counts is None) == (expected is None)
    if expected is not None:
        assert np.array_equal(counts.tokens, expected.tokens)
    with pytest.raises(UnusableInput):
        there.prepare([TextInput("")] if here.info.task == "image" else [EncodedImage(png)])


def test_the_process_of_the_models_does_not_load_scipy(lasting):
    real(lasting, "sst2-moe")
    maps = Path(f"/proc/{lasting.pid}/maps").read_text()
    assert "libtorch_cpu" in maps
    assert "/scipy" not in maps


def test_a_batch_that_waited_longer_than_anybody_waits_for_it_is_not_run(process, tmp_path):
    model = fake(process, "moe")
    gate = tmp_path / "gate"
    items = model.prepare([TextInput("1")])
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(run, model, f"hold {gate}")
        while not Path(f"{gate}.held").exists():
            time.sleep(0.01)
        behind = threads.submit(model.run_by, time.monotonic() + 0.05, items)
        time.sleep(0.1)
        gate.touch()
        assert first.result(30) == [[1, -1]]
        with pytest.raises(DeadlineExceeded, match="another batch ran"):
            behind.result(30)
    assert model.run_by(time.monotonic() + 60, items).logits.tolist() == [[1, -1]]
    assert model.expert_counts().rows.tolist() == [2], "what is late leaves no trace"


def test_the_experts_of_tokens_are_told_as_in_this_process(lasting):
    here, there = load_model("sst2-moe", "zoo:sst2-moe", "cpu", "fp32"), real(lasting, "sst2-moe")
    told = []
    for model in (here, there):
        items = model.prepare([TextInput("a fine film", wants_routing=True), TextInput("dull")])
        model.run(items)
        assert items[1].routing is None
        told.append(items[0].routing)
    assert told[0].experts
    assert told[0] == told[1]


@pytest.fixture
def png():
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (200, 30, 90)).save(buffer, "PNG")
    return buffer.getvalue()


THREADED = """
import torch
from dataclasses import replace
from fewshard_core.values import Execution
from fake_models import FakeModel

class Model(FakeModel):
    def logits(self, text):
        return [float(torch.get_num_threads())] * 2

def load_model(name, path, device, dtype, threads=()):
    model = Model(name, path)
    model.info = replace(model.info, execution=Execution(num_threads=max(threads, default=0)))
    return model
"""


def test_each_model_computes_with_its_own_number_of_threads(process, tmp_path, monkeypatch):
    (tmp_path / "threaded.py").write_text(THREADED)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    process = ModelProcess(num_threads=3)
    try:
        models = [
            process.load(Loading("threaded:load_model", name, "dense", "cpu", "fp32", threads=threads))
            for name, threads in (("a", (1, 2)), ("b", (1,)))
        ]
        for _ in range(2):
            assert [run(model, "x")[0][0] for model in models] == [2.0, 1.0]
    finally:
        process.close()


def environment_of(pid: int) -> list[str]:
    """Return the variables that a process was started with; for a moment it has none."""
    file = Path(f"/proc/{pid}/environ")
    while not (found := file.read_text()):
        time.sleep(0.01)
    return found.split("\0")


def test_threads_that_wait_leave_their_core_to_others(lasting, monkeypatch):
    assert "OMP_WAIT_POLICY=passive" in environment_of(lasting.pid)
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    process = ModelProcess(num_threads=1)
    try:
        assert "OMP_WAIT_POLICY=active" in environment_of(process.pid)
    finally:
        process.close()


def test_loading_draws_no_bars():
    """Seen from outside: what a process of this process writes is hard to catch in here."""
    loading = "Loading('fewshard_serve.backends.load:load_model', 'm', 'zoo:sst2-narrow', 'cpu', 'fp32')"
    imports = "from fewshard_serve.backends.process import Loading, ModelProcess"
    code = f"{imports}\nprocess = ModelProcess(1)\nprocess.load({loading})\nprocess.close()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_loader_without_torch_does_not_wait_for_it(process):
    fake(process)
    mapped = Path(f"/proc/{process.pid}/maps").read_text()
    assert "/numpy/" in mapped
    assert "/torch/" not in mapped


def test_a_model_of_torchs_runs_with_subnormals_flushed(process, tmp_path, monkeypatch):
    (tmp_path / "subnormal_models.py").write_text(SUBNORMAL)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    process = ModelProcess(num_threads=1)
    fake(process)
    model = process.load(Loading("subnormal_models:load_model", "s", "dense", "cpu", "fp32"))
    assert run(model, "1") == [[0, 0]]
    process.close()


def test_errors_arrive_as_they_were_raised(process):
    with pytest.raises(FileNotFoundError, match="no checkpoint for m"):
        fake(process, "missing")
    with pytest.raises(NotReady, match="golden input 3"):
        fake(process, "damaged")
    model = fake(process)
    with pytest.raises(RuntimeError, match="device trouble") as caught:
        run(model, "crash")
    assert "fake_models.py" in caught.value.__notes__[0], "it says where it was raised"
    assert run(model, "3") == [[3, -3]]


def test_one_that_is_killed_in_a_pass_is_replaced(process):
    model, first = fake(process, "group"), process.pid
    assert run(model, "2", "3") == [[2, -2], [3, -3]]
    threading.Timer(0.3, os.kill, (first, signal.SIGKILL)).start()
    with pytest.raises(ModelRestarted, match="exit code -9"):
        run(model, "sleep 10")
    assert process.pid != first
    assert (process.problem, process.is_restarting) == ("", False)
    assert run(model, "5") == [[5, -5]]
    counts = model.expert_counts()
    assert counts.tokens.tolist() == [[3, 0]], "those of the dead are not forgotten"
    assert counts.by_shard.tolist() == [[0, 3, 0]]


def test_it_is_asked_by_many_threads_and_does_one_pass_after_the_other(process):
    model = fake(process, "moe")

    def ask(number):
        assert run(model, str(number)) == [[number, -number]]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(40)))
    assert model.expert_counts().tokens.sum() == 40, "the last answer is what is kept"


OVERLAPPING = """
import threading
import torch
from dataclasses import replace
from fewshard_core.values import Execution
from fake_models import FakeModel

class Model(FakeModel):
    both = threading.Barrier(2)
    inside = 0

    def logits(self, text):
        self.inside += 1
        try:
            if text == "meet":
                self.both.wait(60)
                return [torch.get_num_threads(), float(torch.tensor(1e-30) * 1e-10)]
            if text == "alone":
                assert self.inside == 1, "it has one stream"
                return [0.0, 0.0]
            return super().logits(text)
        finally:
            self.inside -= 1

def load_model(name, path, device, dtype):
    model = Model(name, path)
    how = Execution(num_threads=1, num_streams=2 if path == "two" else 1)
    model.info = replace(model.info, execution=how)
    return model
"""


@pytest.fixture
def overlapping(tmp_path, monkeypatch):
    """Loads a model of two streams and one of one into a process."""
    (tmp_path / "overlapping.py").write_text(OVERLAPPING)
    monkeypatch.setattr(sys, "path", [*sys.path, FAKES, str(tmp_path)])
    process = ModelProcess(num_threads=2)
    yield [
        process.load(Loading("overlapping:load_model", path, path, "cpu", "fp32")) for path in ("two", "one")
    ]
    process.close()


def test_two_streams_run_two_passes_at_the_same_time_each_with_its_threads(overlapping):
    with ThreadPoolExecutor(2) as pool:
        for _ in range(3):
            both = [pool.submit(run, overlapping[0], "meet") for _ in range(2)]
            assert [each.result(60) for each in both] == [[[1, 0]]] * 2, "and subnormals flushed"


def test_a_short_pass_does_not_wait_for_a_long_one_of_another_stream(overlapping, tmp_path):
    two, one = overlapping
    with ThreadPoolExecutor(3) as pool:
        slow = pool.submit(run, two, f"hold {tmp_path / 'go'}")
        while not (tmp_path / "go.held").exists():
            time.sleep(0.01)
        assert [run(two, str(number)) for number in range(20)] == [[[n, -n]] for n in range(20)]
        assert run(one, "alone") == [[0, 0]]
        assert not slow.done()
        (tmp_path / "go").touch()
        slow.result(60)


def test_a_model_of_one_stream_runs_one_pass_at_a_time_beside_one_of_two(overlapping):
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: run(overlapping[1], "alone"), range(20))) == [[[0, 0]]] * 20


def test_all_who_wait_for_one_that_dies_are_told_and_one_other_is_started(process, caplog):
    model, first = fake(process), process.pid
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(run, model, "sleep 10") for _ in range(2)]
        threading.Timer(0.3, os.kill, (first, signal.SIGKILL)).start()
        for one in asked:
            with pytest.raises(ModelRestarted):
                one.result(60)
    assert caplog.text.count("starting another") == 1
    assert run(model, "5") == [[5, -5]]


def test_a_checkpoint_that_ends_the_process_takes_no_other_along(process):
    model = fake(process)
    with pytest.raises(ProcessEnded, match="exit code 1"):
        fake(process, "deadly")
    assert run(model, "7") == [[7, -7]]
    assert fake(process, "contrary").info.kind == "contrary"


def test_one_whose_models_cannot_be_loaded_again_says_so(process, tmp_path, monkeypatch):
    (tmp_path / "fleeting_models.py").write_text("from fake_models import load_model\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    process = ModelProcess(num_threads=1)
    model = process.load(Loading("fleeting_models:load_model", "m", "dense", "cpu", "fp32"))
    (tmp_path / "fleeting_models.py").unlink()
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(ModuleNotFoundError):
        run(model, "1")
    assert "has ended" in process.problem
    process.close()


def test_it_ends_with_whoever_started_it(process):
    fake(process)
    pid = process.pid
    process.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(ProcessEnded):
        process.ask("run", "m", [])
