"""How `load` chooses a number format, threads and tokens of a batch, by times that these tests make up."""

import json
import math
import shutil
import threading
import time

import numpy as np
import pytest
import torch

from fewshard_core.formats import FORMATS, NumberFormat
from fewshard_models.checkpoint import resolve
from fewshard_models.classifier import execution
from fewshard_models.classifier.load import compare, load
from fewshard_models.errors import CheckpointError, SettingError
from fewshard_models.tuning import kept, product
from fewshard_models.tuning.choice import Candidate, decide

PATH = "zoo:sst2-narrow"
STREAMS = "2 streams of 1"


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def measuring(monkeypatch, tmp_path):
    """An empty cache, and a process that has measured nothing."""
    monkeypatch.setenv("FEWSHARD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FEWSHARD_MEASURE", "1")
    monkeypatch.setattr(kept, "_spent", kept._Spent())


@pytest.fixture
def timed(measuring, monkeypatch):
    """Sets the items/s of each candidate. Returns the names of all candidates that were timed."""
    rates = {"fp32": 100.0, "bf16": 300.0, "1": 100.0, "2": 100.0, "3": 50.0, STREAMS: 25.0, "": 1e6}
    names = []

    def made_up(runs, sizes, *_, **__):
        for name, run in runs.items():
            names.append(name)
            run(sizes[0])
        return {name: {size: rates.get(name, 100.0) for size in sizes} for name in runs}

    monkeypatch.setattr(execution, "formats_of_cpu", lambda: ["fp32", "bf16"])
    monkeypatch.setattr(execution, "LOAD_LIMIT_S", math.inf)
    monkeypatch.setattr(execution, "time_batches", made_up)
    monkeypatch.setattr(product, "time_batches", made_up)
    return rates, names


@pytest.fixture
def rough():
    """A format whose answers differ from the golden ones by more than it allows."""

    def prepare(network):
        network.classifier.weight.data *= 2

    FORMATS.register(NumberFormat("rough", "float32", "float32", 1e-3, 2e-2, lambda _: True, prepare))
    yield "rough"
    FORMATS.remove("rough")


@pytest.mark.parametrize(("fp32", "bf16", "expected"), [(100.0, 300.0, "bf16"), (300.0, 100.0, "fp32")])
def test_the_faster_format_is_chosen(timed, fp32, bf16, expected):
    timed[0].update(fp32=fp32, bf16=bf16)
    model = load(PATH, "cpu")
    assert model.info.dtype == expected
    assert model.info.execution.dtype_reason.startswith("measured: 300 items/s;")


def test_a_second_load_measures_nothing_and_chooses_alike(timed):
    rates, names = timed
    first = load(PATH, "cpu", threads=(1, 2))
    assert {"fp32", "bf16", "1", "2"} <= set(names)
    names.clear()
    rates.update(fp32=900.0)
    second = load(PATH, "cpu", threads=(1, 2))
    assert names == []
    assert second.info == first.info
    assert compare(PATH, "auto", (1, 2), anew=True)["format"].chosen == "fp32"
    assert load(PATH, "cpu").info.dtype == "fp32"


def test_models_of_one_shape_are_timed_once(timed, tmp_path):
    load(PATH, "cpu")
    timed[1].clear()
    shutil.copytree(resolve(PATH), tmp_path / "copy")
    load(tmp_path / "copy", "cpu")
    assert timed[1] == []
    load("zoo:sst2-dense", "cpu")
    assert "bf16" in timed[1]


def test_a_format_that_is_asked_for_is_not_compared(timed):
    model = load(PATH, "cpu", "fp32")
    assert model.info.dtype == "fp32"
    assert model.info.execution.dtype_reason == "asked for"
    assert not {"fp32", "bf16"} & set(timed[1])


def test_nothing_is_measured_where_that_is_asked_for(timed, monkeypatch):
    monkeypatch.setenv("FEWSHARD_MEASURE", "0")
    assert load(PATH, "cpu").info.dtype in FORMATS.names
    assert timed[1] == []
    monkeypatch.setenv("FEWSHARD_MEASURE", "perhaps")
    with pytest.raises(SettingError, match="FEWSHARD_MEASURE is 'perhaps'"):
        load(PATH, "cpu")


@pytest.mark.parametrize("has_card", [True, False])
def test_a_format_that_answers_otherwise_is_dropped_and_that_is_said(
    timed, rough, has_card, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(execution, "formats_of_cpu", lambda: ["fp32", rough])
    timed[0][rough] = 900.0
    shutil.copytree(resolve(PATH), tmp_path / "m")
    if not has_card:
        (tmp_path / "m" / "card.json").unlink()
    assert load(tmp_path / "m", "cpu").info.dtype == "fp32"
    assert "rough is no candidate" in caplog.text
    dropped = {
        each.name: each.dropped
        for each in compare(tmp_path / "m", "auto", (), anew=False)["format"].candidates
    }
    assert dropped["fp32"] == ""
    assert "a logit is" in dropped[rough]


def test_a_kept_choice_that_answers_otherwise_is_not_served(timed, rough, tmp_path, monkeypatch, caplog):
    """A checkpoint without golden answers had the same shape."""
    monkeypatch.setattr(execution, "formats_of_cpu", lambda: ["fp32", rough])
    monkeypatch.setattr(execution, "_departs", lambda *_: "")
    timed[0][rough] = 900.0
    shutil.copytree(resolve(PATH), tmp_path / "m")
    (tmp_path / "m" / "card.json").unlink()
    assert load(tmp_path / "m", "cpu").info.dtype == rough
    assert load(PATH, "cpu").info.dtype == "fp32"
    assert "does not run in rough: model 'sst2-narrow' answers its golden inputs wrongly" in caplog.text


def test_of_a_card_that_is_wrong_in_every_format_the_self_check_tells(timed, tmp_path):
    """`load` serves it, so that `fewshard evaluate` can make the card anew; the server does not."""
    shutil.copytree(resolve(PATH), tmp_path / "m")
    card = json.loads((tmp_path / "m" / "card.json").read_text())
    card["golden"][0]["logits"][0] += 9.0
    (tmp_path / "m" / "card.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match="answers its golden inputs wrongly: a logit is off by"):
        load(tmp_path / "m", "cpu").self_check()


def test_the_faster_number_of_threads_is_used(timed):
    timed[0].update({"1": 100.0, "2": 200.0})
    model = load(PATH, "cpu", "fp32", threads=(1, 2))
    assert model.info.execution.num_threads == torch.get_num_threads() == 2
    timed[0].update({"1": 200.0, "2": 210.0})
    assert compare(PATH, "fp32", (1, 2), anew=True)["threads"].chosen == "1"


def test_numbers_of_threads_are_not_compared_on_a_busy_machine(timed, monkeypatch):
    made_up = execution.time_batches

    def disturbed(runs, sizes, limit_s, stopwatch=time.thread_time):
        found = made_up(runs, sizes)
        share = 0.4 if stopwatch is time.perf_counter else 1.0
        return {name: {size: rate * share for size, rate in rates.items()} for name, rates in found.items()}

    timed[0].update({"1": 100.0, "2": 200.0})
    monkeypatch.setattr(execution, "time_batches", disturbed)
    assert load(PATH, "cpu", "fp32", threads=(1, 2)).info.execution.num_threads == 1
    monkeypatch.setattr(execution, "time_batches", made_up)
    assert load(PATH, "cpu", "fp32", threads=(1, 2)).info.execution.num_threads == 2


def test_passes_overlap_where_that_answers_more(timed, monkeypatch):
    timed[0].update({"1": 100.0, "2": 110.0, STREAMS: 90.0})
    model = load(PATH, "cpu", "fp32", threads=(1, 2, 3))
    found = model.info.execution
    assert (found.num_streams, found.num_threads, torch.get_num_threads()) == (2, 1, 1)
    assert found.threads_reason.startswith("measured: ")
    monkeypatch.setattr(type(model), "can_overlap", False)
    assert load(PATH, "cpu", "fp32", threads=(1, 2, 3)).info.execution.num_streams == 1, "although it is kept"
    found = compare(PATH, "fp32", (1, 2, 3), anew=True)["threads"]
    assert found.chosen == "1"
    assert found.candidates[-1].dropped == "its passes must not overlap"


def test_streams_leave_a_core_to_the_server():
    assert list(execution.ways((7, 1, 2, 4, 8))) == ["7", "1", "2", "4", "8", "3 streams of 2"]
    assert list(execution.ways((1, 2))) == ["1", "2"]


def test_streams_divide_a_batch(measuring, monkeypatch):
    """Real passes: as many callers wait, however many streams there are."""
    seen = []
    model = load(PATH, "cpu", "fp32")
    monkeypatch.setattr(model, "run", lambda items: seen.append((threading.get_ident(), len(items))))
    with execution._running(execution.Parallel(2, 1), execution.runner(model, [0])) as run:
        run(1)
        assert [size for _, size in seen] == [1]
        run(9)
    assert sorted(size for _, size in seen) == [1, 4, 5]


def test_streams_of_one_thread_are_as_fast_as_their_cpu_time_says():
    """Here other processes have half of the machine: both runs take twice their CPU time."""
    cpu = {1: 10.0, 8: 10.0}
    alone = {1: 5.0, 8: 5.0}
    assert execution._served(execution.Parallel(1, 1), alone, cpu, 1000) == {1: 10.0, 8: 10.0}
    assert execution._served(execution.Parallel(2, 1), alone, cpu, 1000) == {1: 10.0, 8: 20.0}
    assert execution._served(execution.Parallel(2, 4), alone, cpu, 1000) == {1: 5.0, 8: 5.0}


@pytest.mark.parametrize(
    ("ms_of_one", "ms_of_two", "chosen"),
    [(0.8, 0.6, "1"), (1.8, 1.4, "1"), (10.0, 5.5, "2"), (10.0, 9.0, "1")],
)
def test_a_second_thread_takes_a_core_that_the_server_needs(ms_of_one, ms_of_two, chosen):
    """The server needs a millisecond of a core for each item, beside the model's threads."""
    one, two = (dict.fromkeys((1, 8, 32), 1000.0 / each) for each in (ms_of_one, ms_of_two))
    cpu_of_two = {size: rate / 2 for size, rate in two.items()}
    candidates = [
        Candidate("1", execution.served_rates(one, one, cores=2)),
        Candidate("2", execution.served_rates(two, cpu_of_two, cores=2)),
    ]
    assert decide(candidates, price=execution.THREADS_PRICE).chosen == chosen


def test_threads_are_left_alone_where_none_are_given(timed):
    torch.set_num_threads(2)
    assert load(PATH, "cpu").info.execution.num_threads == 0
    assert torch.get_num_threads() == 2


def test_larger_batches_are_made_where_they_pay(timed):
    timed[0].update({"4096": 100.0, "8192": 300.0, "2048": 100.0})
    model = load(PATH, "cpu", "fp32")
    assert model.info.execution.max_batch_tokens == 8192


def test_a_process_that_has_measured_enough_times_a_product_alone(timed, monkeypatch):
    monkeypatch.setattr(kept._spent, "seconds", kept.PROCESS_LIMIT_S + 1)
    model = load(PATH, "cpu", threads=(1, 2))
    assert model.info.dtype == "bf16"
    assert model.info.execution.dtype_reason.startswith("by one product, as the network was not timed")
    assert model.info.execution.num_threads == 1
    assert model.info.execution.threads_reason == "not measured yet"
    kept._spent.seconds = 0.0
    assert load(PATH, "cpu").info.execution.dtype_reason.startswith("measured")


def test_formats_that_take_too_long_to_load_are_compared_by_a_product(timed, monkeypatch):
    monkeypatch.setattr(execution, "LOAD_LIMIT_S", -1.0)
    first = load(PATH, "cpu")
    assert first.info.dtype == "bf16"
    assert first.info.execution.dtype_reason.startswith("by one product")
    timed[1].clear()
    assert load(PATH, "cpu").info == first.info
    assert timed[1] == []


def test_a_large_network_is_not_loaded_in_each_format(timed, monkeypatch):
    monkeypatch.setattr(execution, "MAX_PARAMETERS", 1000)
    monkeypatch.setattr(execution, "_measure_formats", lambda *_: pytest.fail("it was"))
    assert load(PATH, "cpu").info.dtype == "bf16"


@pytest.mark.parametrize("path", [PATH, "zoo:cifar10-narrow"])
def test_a_real_measurement(measuring, path):
    found = compare(path, "auto", (1, 2), anew=False)
    names = execution.formats_of_cpu()
    assert [each.name for each in found["format"].candidates] == names
    assert found["format"].chosen in names
    assert found["threads"].chosen in ("1", "2")
    assert int(found["tokens"].chosen) in execution.BUDGETS
    for each in (*found["format"].candidates, *found["threads"].candidates):
        assert all(rate > 0 for rate in each.items_per_s.values())
    first, second = load(path, "cpu"), load(path, "cpu")
    assert first.info == second.info
    assert first.info.dtype == found["format"].chosen
    items = execution.usual_items(first)
    assert np.array_equal(first.run_all(items), second.run_all(items))
