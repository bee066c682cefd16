"""What a loss uses of what was prepared for it, in a group of threads over TCP and Gloo."""

import os
import sys
import threading
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from fewshard_models.sharding import shard as shard_module
from fewshard_models.sharding import weights as weights_module
from fewshard_serve.group import shard_runtime


def close_to(logits, expected):
    return np.abs(logits - expected).max() < 1e-4


@pytest.fixture
def directory(moe_checkpoint):
    return moe_checkpoint()


def test_a_loss_takes_what_stood_by_for_it(open_group, directory, kit, monkeypatch, caplog):
    """Spares and connections: the survivors meet nobody and read nothing."""
    group, items = open_group(directory, 3, spare_bytes=2**20), kit.random_items(9)
    expected = kit.whole_logits(directory, items)
    group.run(items)
    kit.wait_until(lambda: stands_by(group, 2))
    reads = lambda *args: pytest.fail("read") if args[2] else None  # noqa: E731
    monkeypatch.setattr(weights_module, "read_experts", reads)
    monkeypatch.setattr(shard_runtime, "meet", lambda *args: pytest.fail("met"))
    group.launcher.end(2)
    assert close_to(group.run(items).logits, expected)
    kit.wait_until(lambda: group.status.size == 2)
    assert "shards [0, 1] go on after a halt of " in caplog.text
    monkeypatch.undo()
    group.launcher.start_again(2)
    kit.wait_until(lambda: group.status.size == 3)
    kit.wait_until(lambda: stands_by(group, 1))
    group.launcher.end(1)
    assert close_to(group.run(items).logits, expected)


def stands_by(group, lost):
    """Whether all are ready for the loss of a shard. Looks inside, since nobody else needs to know."""
    machine = group._membership._machine
    live = tuple(shard for shard in range(3) if shard != lost)
    runtimes = [group._runtime, *(worker._runtime for worker in group.launcher.workers.values())]
    spares = {expert for one in runtimes for layer in one.shard._spares for expert in layer.experts}
    on_lost = {expert for experts in group.status.placement.experts_on(lost) for expert in experts}
    return machine._readiness.is_ready_for(live) and on_lost <= spares


def test_a_loss_interrupts_the_step_of_a_group_of_gpus(open_group, directory, kit, monkeypatch):
    """Their kernels would wait for the dead shard; the connections of gloo tell of it by themselves."""
    group, interrupted = open_group(directory, 3), []
    generation = group.status.generation
    runtimes = [group._runtime, *(group.launcher.workers[shard]._runtime for shard in (1, 2))]
    for runtime in runtimes:
        note = partial(interrupted.append, runtime.number)
        monkeypatch.setattr(runtime._prepared[generation].exchange, "interrupt", note)
    machine = group._membership._machine
    machine.active = replace(machine.active, backend="nccl")
    group.launcher.end(2)
    kit.wait_until(lambda: sorted(interrupted) == [0, 1])


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priorities of their own")
def test_spares_are_loaded_behind_everything_else(open_group, directory, kit, monkeypatch):
    priorities = {}

    def note(shard, blocks):
        priorities[threading.get_native_id()] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    monkeypatch.setattr(shard_module.Shard, "keep_spares", note)
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    open_group(directory, 3, spare_bytes=2**20)
    kit.wait_until(lambda: len(priorities) == 3)
    assert set(priorities.values()) == {19}
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own
