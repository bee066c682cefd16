"""Groups over small checkpoints, whose workers are threads or processes."""

import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fewshard_core.values import TokenIds
from fewshard_models.classifier.load import load_checkpoint
from fewshard_models.sharding import contiguous
from fewshard_models.text import pack
from fewshard_serve.group.launcher import ProcessLauncher
from fewshard_serve.group.leader import Group
from fewshard_serve.group.settings import GroupSettings
from fewshard_serve.group.worker import Worker

CPU = torch.device("cpu")


class ThreadLauncher:
    """Workers as threads of this process; `start_again` brings back what has ended."""

    def __init__(self, directories=None):
        self.directories = directories or {}
        self.invitations = {}
        self.workers = {}
        self.killed = []

    def start(self, invitations):
        self.invitations = {one.shard: one for one in invitations}
        for shard in self.invitations:
            self.start_again(shard)

    def start_again(self, shard):
        invitation = self.invitations[shard]
        path = str(self.directories.get(shard, invitation.path))
        worker = self.workers[shard] = Worker(replace(invitation, path=path))
        threading.Thread(target=worker.main, daemon=True).start()

    def end(self, shard):
        """As if its process had died."""
        worker = self.workers[shard]
        worker._runtime.close()
        worker._link.close()

    def tend(self):
        pass

    def kill(self, shard, host, pid):
        self.killed.append(shard)

    def stop(self):
        for worker in self.workers.values():
            if hasattr(worker, "_link"):
                worker._link.close()


def random_items(num_items, seed=0, vocabulary=101):
    rng = np.random.default_rng(seed)
    return [
        TokenIds(rng.integers(1, vocabulary, rng.integers(1, 20)).tolist(), None) for _ in range(num_items)
    ]


def whole_logits(directory, items, dtype=torch.float32):
    network = load_checkpoint(directory, dtype).model
    network.prepare_for_inference()
    with torch.inference_mode():
        return network.forward_packed(pack([item.ids for item in items], None, CPU)).logits.numpy()


def wait_until(condition, timeout_s=20.0):
    give_up_at = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < give_up_at, "not in time"
        time.sleep(0.01)


@pytest.fixture
def kit():
    """The functions above, since tests cannot import a conftest."""
    return SimpleNamespace(
        random_items=random_items,
        whole_logits=whole_logits,
        wait_until=wait_until,
        ThreadLauncher=ThreadLauncher,
    )


@pytest.fixture
def open_group():
    """Opens a group; its launcher is in `.launcher`."""
    with ExitStack() as stack:

        def make(directory, num_shards=3, launcher=None, check=lambda run: "", placement=None, **settings):
            slots = settings.pop("slots_per_shard", 8)
            most = settings.pop("max_slots_per_shard", 8)
            target = placement or contiguous(2, 8, num_shards, slots)
            launcher = launcher or ThreadLauncher()
            settings = GroupSettings(
                str(directory), "fp32", "cpu", num_shards, most, **{"timeout_s": 1.5, **settings}
            )
            group = Group(settings, target, launcher, check)
            stack.callback(group.close)
            group.launcher = launcher
            group.open()
            return group

        yield make


@pytest.fixture
def open_process_group(open_group):
    def make(directory, num_shards=3, **settings):
        return open_group(directory, num_shards, ProcessLauncher(), **settings)

    return make
