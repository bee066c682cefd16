"""What is kept of measurements: by machine, atomically, and without a fault that stops a load."""

import json
import multiprocessing
from dataclasses import replace

import pytest

from fewshard_models.tuning import machine as machines
from fewshard_models.tuning.cache import TuningCache
from fewshard_models.tuning.machine import Machine, cache_folder, this_machine

MACHINE = Machine("A CPU (R) 3000", "abc", 2, None, {}, "2.13.0")


@pytest.fixture
def cache(tmp_path):
    return TuningCache(tmp_path / "new", MACHINE)


def test_another_process_finds_what_was_kept(cache, tmp_path):
    cache.keep("format x", {"chosen": "bf16"})
    other = TuningCache(tmp_path / "new", MACHINE)
    assert other.recall("format x") == {"chosen": "bf16"}
    assert other.recall("format y") is None
    assert [file.suffix for file in sorted(cache.file.parent.iterdir())] == [".json", ".lock"]


@pytest.mark.parametrize(
    "change",
    [
        {"cpu": "Another"},
        {"flags": "abd"},
        {"cores": 4},
        {"quota": 0.5},
        {"limits": {"ONEDNN_MAX_CPU_ISA": "AVX2"}},
        {"torch": "2.14.0"},
        {"version": 0},
    ],
)
def test_another_machine_has_another_file(cache, tmp_path, change):
    cache.keep("format x", 1)
    assert TuningCache(tmp_path / "new", replace(MACHINE, **change)).recall("format x") is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is damaged and ignored"),
        ("[1, 2]", "is damaged and ignored"),
        ('{"machine": {}}', "is damaged and ignored"),
        ("\udcff", "is damaged and ignored"),
        ('{"machine": {"cpu": "Another"}, "entries": {"format x": 1}}', "is of another machine"),
        ('{"machine": MINE, "entries": [1]}', "is of another machine"),
    ],
)
def test_a_file_that_cannot_be_used_is_ignored_said_and_rewritten(cache, caplog, content, said):
    cache.file.parent.mkdir()
    written = content.replace("MINE", json.dumps(MACHINE.as_json()))
    cache.file.write_bytes(written.encode(errors="surrogateescape"))
    assert cache.recall("format x") is None
    assert said in caplog.text
    cache.keep("format y", 2)
    assert json.loads(cache.file.read_text())["entries"] == {"format y": 2}
    assert caplog.text.count(said) == 1


def test_a_folder_that_cannot_be_written_is_said_and_the_process_remembers(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way of the folder")
    cache = TuningCache(tmp_path / "file" / "tuning", MACHINE)
    cache.keep("format x", 1)
    cache.keep("format y", 2)
    assert (cache.recall("format x"), cache.recall("format y")) == (1, 2)
    assert caplog.text.count("measurements cannot be kept") == 1
    assert "damaged" not in caplog.text
    assert "FEWSHARD_CACHE" in caplog.text


def test_without_a_home_the_process_remembers(monkeypatch):
    cache = TuningCache(None, MACHINE)
    cache.keep("format x", 1)
    with cache.alone():
        assert cache.recall("format x") == 1


def test_a_beginning_can_be_forgotten(cache, tmp_path):
    cache.keep("experts 8", 1)
    cache.keep("format x", 2)
    cache.forget("experts ")
    assert cache.recall("experts 8") is None
    assert TuningCache(tmp_path / "new", MACHINE).recall("format x") == 2


def test_it_is_one_at_a_time_and_may_be_nested(cache):
    with cache.alone(), cache.alone():
        cache.keep("format x", 1)
    assert cache.recall("format x") == 1


def _add_many(folder, worker):
    cache = TuningCache(folder, MACHINE)
    for number in range(20):
        cache.keep(f"{worker}.{number}", number)


def test_several_processes_lose_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_add_many, args=(tmp_path, worker)) for worker in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    cache = TuningCache(tmp_path, MACHINE)
    assert all(cache.recall(f"{worker}.{number}") == number for worker in range(3) for number in range(20))


def test_the_folder_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("FEWSHARD_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path / "tuning"
    monkeypatch.delenv("FEWSHARD_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "fewshard" / "tuning"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "fewshard" / "tuning"


def test_limits_of_the_environment_make_another_machine(monkeypatch):
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    free = this_machine()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert this_machine().file_name != free.file_name
    assert free.version == machines.VERSION
