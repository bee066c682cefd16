"""What a shard may still allocate: the machine's memory, or what a container's limit leaves of it."""

import sys

import psutil
import pytest
import torch

from fewshard_models.sharding import shard

CPU = torch.device("cpu")
LIMIT, USED, DROPPABLE = 3_000_000, 2_500_000, 400_000


@pytest.fixture
def container(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text(f"{LIMIT}\n")
    (tmp_path / "memory.current").write_text(f"{USED}\n")
    (tmp_path / "memory.stat").write_text(f"anon 2100000\ninactive_file {DROPPABLE}\nactive_file 7\n")
    monkeypatch.setattr(shard, "CGROUP", tmp_path)
    return tmp_path


@pytest.fixture
def no_container(tmp_path, monkeypatch):
    monkeypatch.setattr(shard, "CGROUP", tmp_path / "none")


def test_without_a_container_it_is_what_the_machine_has_left(no_container):
    before = psutil.virtual_memory()
    assert before.total / 100 < shard.available_bytes(CPU) < before.total


def test_a_containers_limit_goes_first_and_its_page_cache_can_be_dropped(container):
    assert shard.available_bytes(CPU) == LIMIT - USED + DROPPABLE


def test_a_container_without_a_limit_is_none(container):
    (container / "memory.max").write_text("max\n")
    assert shard.available_bytes(CPU) > LIMIT


def test_models_run_without_psutil(no_container, monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert shard.available_bytes(CPU) == shard.UNLIMITED


def test_what_a_gpus_allocator_has_cached_is_available(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1_000, 9_000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 7_000)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2_000)
    assert shard.available_bytes(torch.device("cuda")) == 1_000 + 5_000
