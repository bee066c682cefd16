"""A group of threads over TCP and Gloo: the answers of the whole model, whatever happens to the shards."""

import contextlib
import socket
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from fewshard_core.values import TokenIds
from fewshard_models.errors import ExchangeError
from fewshard_models.sharding import Placement, contiguous, round_robin
from fewshard_serve.errors import InternalError, NotReady
from fewshard_serve.group import leader as leader_module
from fewshard_serve.group.worker import Worker


def close_to(logits, expected):
    return np.abs(logits - expected).max() < 1e-4


@pytest.fixture
def directory(moe_checkpoint):
    return moe_checkpoint()


def test_a_group_answers_as_the_whole_model(open_group, directory, kit):
    group = open_group(directory, 3)
    for num_items in (1, 2, 7, 40):
        items = kit.random_items(num_items, seed=num_items)
        out = group.run(items)
        assert close_to(out.logits, kit.whole_logits(directory, items))
        num_tokens = sum(len(item.ids) for item in items)
        assert out.tokens.sum(axis=1).tolist() == [num_tokens] * 2
        assert out.computed.sum(axis=1).tolist() == [num_tokens] * 2
        assert not out.is_degraded
    assert (out.computed > 0).all(), "every shard did its part"
    assert (group.status.size, group.status.num_reforms) == (3, 0)


def test_a_group_of_one(open_group, directory, kit):
    items = kit.random_items(5)
    assert close_to(open_group(directory, 1).run(items).logits, kit.whole_logits(directory, items))


def test_a_shard_that_dies_between_batches_costs_nothing(open_group, directory, kit):
    group, items = open_group(directory, 3), kit.random_items(9)
    expected = kit.whole_logits(directory, items)
    group.run(items)
    group.launcher.end(2)
    kit.wait_until(lambda: group.status.size == 2)
    out = group.run(items)
    assert close_to(out.logits, expected)
    assert out.computed[:, 2].tolist() == [0, 0]
    group.launcher.start_again(2)
    kit.wait_until(lambda: group.status.size == 3)
    assert close_to(group.run(items).logits, expected)
    assert group.status.num_reforms == 2
    assert group.status.placement == contiguous(2, 8, 3, 8)


def test_a_shard_that_dies_within_a_batch_costs_time_alone(open_group, directory, kit, monkeypatch):
    group, items = open_group(directory, 4), kit.random_items(9)
    worker = group.launcher.workers[1]

    def die(*_):
        group.launcher.end(1)
        raise ExchangeError("gone")

    monkeypatch.setattr(worker._runtime.shard, "run", die)
    started_at = time.monotonic()
    assert close_to(group.run(items).logits, kit.whole_logits(directory, items))
    assert time.monotonic() - started_at < 1.5
    assert group.status.size == 3


def test_all_workers_may_die(open_group, directory, kit):
    group, items = open_group(directory, 3), kit.random_items(4)
    for shard in (1, 2):
        group.launcher.end(shard)
    assert close_to(group.run(items).logits, kit.whole_logits(directory, items))
    kit.wait_until(lambda: group.status.size == 1)


def test_a_shard_that_hangs_in_a_batch_is_removed_after_the_timeout(open_group, directory, kit, monkeypatch):
    """Its link still answers pings, so only the batch can tell."""
    group, items = open_group(directory, 3), kit.random_items(4)
    goes_on = threading.Event()
    monkeypatch.setattr(group.launcher.workers[2]._runtime.shard, "run", lambda *_: goes_on.wait(20))
    started_at = time.monotonic()
    assert close_to(group.run(items).logits, kit.whole_logits(directory, items))
    assert time.monotonic() - started_at < 8
    assert group.launcher.killed == [2]
    goes_on.set()


def test_a_silent_shard_is_removed_while_nothing_runs(open_group, directory, kit, monkeypatch):
    group = open_group(directory, 3, timeout_s=0.6)
    monkeypatch.setattr(group.launcher.workers[1]._link, "send", lambda frame: None)
    kit.wait_until(lambda: group.launcher.killed == [1])
    kit.wait_until(lambda: group.status.size == 2)
    items = kit.random_items(3)
    assert close_to(group.run(items).logits, kit.whole_logits(directory, items))


@pytest.mark.parametrize("shard", [0, 1])
def test_a_batch_the_model_fails_on_fails_alone(open_group, directory, kit, shard):
    """A token that is in no vocabulary, among items that are dealt to the leader and to a worker."""

    group, items = open_group(directory, 2), kit.random_items(6)
    bad = [TokenIds([5] * (30 - shard), None), TokenIds([5] * 29, None)]
    bad[shard] = TokenIds([100_000] * 29, None)
    with pytest.raises(InternalError, match="failed on this batch"):
        group.run(bad)
    assert close_to(group.run(items).logits, kit.whole_logits(directory, items))
    assert (group.status.size, group.status.num_reforms) == (2, 0)
    assert group.launcher.killed == []


def test_a_new_placement_is_swapped_in_while_batches_run(open_group, directory, kit):
    group, items = open_group(directory, 2), kit.random_items(6)
    expected = kit.whole_logits(directory, items)
    group.retarget(round_robin(2, 8, 2, 8))
    give_up_at = time.monotonic() + 20
    while group.status.placement != round_robin(2, 8, 2, 8):
        assert close_to(group.run(items).logits, expected)
        assert time.monotonic() < give_up_at
    assert close_to(group.run(items).logits, expected)
    assert group.status.num_moves == 8, "half of each shard's experts changed, in both layers"
    assert group.status.num_reforms == 0
    kit.wait_until(lambda: all(len(seat._prepared) == 1 for seat in seats(group)))


def seats(group):
    """Of the leader and of its workers."""
    return [group._runtime, *(worker._runtime for worker in group.launcher.workers.values())]


def copies_of_expert_0(num_shards):
    slots = np.array(contiguous(2, 8, num_shards, 8).slots)
    for shard in range(1, num_shards):
        slots[:, shard, 7] = 0
    return Placement(slots, 8)


def test_copies_of_a_hot_expert_share_its_rows(open_group, moe_checkpoint, kit):
    directory = moe_checkpoint(num_experts_per_tok=8)
    group, items = open_group(directory, 2, placement=copies_of_expert_0(2)), kit.random_items(20)
    out = group.run(items)
    assert close_to(out.logits, kit.whole_logits(directory, items))
    num_tokens = sum(len(item.ids) for item in items)
    for first, second in out.computed.tolist():
        assert first + second == 8 * num_tokens
        assert abs(first - (3 * num_tokens + num_tokens / 2)) <= 1, "expert 0, 1, 2, 3, the first by half"


def test_lost_experts_that_fit_nowhere_are_an_error(open_group, directory, kit):
    group = open_group(directory, 2, slots_per_shard=4, max_slots_per_shard=4)
    items = kit.random_items(5)
    group.launcher.end(1)
    kit.wait_until(lambda: group.status.problem)
    with pytest.raises(NotReady, match=r"shard 1 lost.*no room"):
        group.run(items)
    group.launcher.start_again(1)
    kit.wait_until(lambda: group.status.size == 2 and not group.status.problem)
    assert close_to(group.run(items).logits, kit.whole_logits(directory, items))


def test_lost_experts_are_left_out_where_that_is_allowed(open_group, directory, kit):
    limits = {"slots_per_shard": 4, "max_slots_per_shard": 5, "allows_degraded": True}
    group, items = open_group(directory, 2, **limits), kit.random_items(5)
    assert not group.run(items).is_degraded
    group.launcher.end(1)
    kit.wait_until(lambda: group.status.is_degraded)
    out = group.run(items)
    assert out.is_degraded
    assert np.isfinite(out.logits).all()
    assert (group.status.placement.copies() > 0).sum() == 10, "five experts in each of two layers"
    group.launcher.start_again(1)
    kit.wait_until(lambda: not group.status.is_degraded)
    out = group.run(items)
    assert not out.is_degraded
    assert close_to(out.logits, kit.whole_logits(directory, items))


def golden(directory, kit):
    items = kit.random_items(8, seed=77)
    expected = kit.whole_logits(directory, items)

    def check(run):
        return "" if close_to(run(items), expected) else "a logit is off"

    return check


def flipped(directory, tmp_path, offset=5000):
    """A copy of a checkpoint some of whose weights have other bits: as long, with the same header."""
    import shutil

    copy = tmp_path / "flipped"
    shutil.copytree(directory, copy)
    file = copy / "model.safetensors"
    content = bytearray(file.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    for place in range(header + 3, len(content), 64):
        content[place] ^= 0x10
    file.write_bytes(content)
    return copy


def test_a_worker_with_flipped_bits_joins_no_group(open_group, directory, kit, tmp_path):
    launcher = kit.ThreadLauncher()
    group = open_group(directory, 3, launcher, golden(directory, kit))
    items = kit.random_items(5)
    expected = kit.whole_logits(directory, items)
    launcher.directories[1] = flipped(directory, tmp_path)
    launcher.end(1)
    kit.wait_until(lambda: group.status.size == 2)
    launcher.start_again(1)
    kit.wait_until(lambda: was_sent_away(launcher, 1))
    assert close_to(group.run(items).logits, expected)
    assert group.status.size == 2
    del launcher.directories[1]
    launcher.start_again(1)
    kit.wait_until(lambda: group.status.size == 3)
    assert close_to(group.run(items).logits, expected)


def was_sent_away(launcher, shard):
    worker = launcher.workers[shard]
    return hasattr(worker, "_link") and worker._link._sock.fileno() == -1


def test_a_group_that_answers_wrongly_never_opens(open_group, directory, kit, tmp_path):
    launcher = kit.ThreadLauncher({1: flipped(directory, tmp_path)})
    with pytest.raises(NotReady, match="a logit is off"):
        open_group(directory, 2, launcher, golden(directory, kit))


def test_a_worker_without_the_checkpoint_is_named(open_group, directory, kit, tmp_path):
    with pytest.raises(NotReady, match=r"shard 2 on .* no checkpoint .*nowhere.*every node needs"):
        open_group(directory, 3, kit.ThreadLauncher({2: tmp_path / "nowhere"}))


def test_a_worker_with_another_checkpoint_is_named(open_group, directory, kit, moe_checkpoint):
    with pytest.raises(NotReady, match=r"shard 1 on .* another checkpoint than the leader"):
        open_group(directory, 2, kit.ThreadLauncher({1: moe_checkpoint(hidden_size=32)}))


def test_shards_of_different_kinds_are_refused(open_group, directory, monkeypatch):
    names = iter(["NVIDIA H200", "cpu"])
    for module in ("worker", "membership"):
        monkeypatch.setattr(f"fewshard_serve.group.{module}.device_name", lambda device: next(names))
    with pytest.raises(NotReady, match=r"shard 1 on .* runs on cpu, the leader on NVIDIA H200"):
        open_group(directory, 2)


def test_a_timeout_too_short_for_the_batch_says_which_setting(open_group, directory, kit, monkeypatch):
    """All shards live and answer, but never in time."""
    group = open_group(directory, 2, timeout_s=0.8)
    monkeypatch.setattr(leader_module, "MAX_TRIES", 2)
    for worker in group.launcher.workers.values():
        run = worker._runtime.shard.run
        monkeypatch.setattr(worker._runtime.shard, "run", lambda *a, run=run: (time.sleep(1.1), run(*a))[1])
    with pytest.raises(InternalError, match="exchange_timeout_ms"):
        group.run(kit.random_items(3))


def test_nobody_comes_in_without_the_secret(open_group, directory, kit):
    group, items = open_group(directory, 2), kit.random_items(3)
    peers = dict(group._membership._peers)
    invitation = group.launcher.invitations[1]
    impostor = Worker(replace(invitation, secret="guessed"))
    thread = threading.Thread(target=impostor.main)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it was sent off"
    assert group._membership._peers == peers
    assert close_to(group.run(items).logits, kit.whole_logits(directory, items))


def test_a_stranger_at_the_door_changes_nothing(open_group, directory, kit):
    group, items = open_group(directory, 2), kit.random_items(3)
    for message in (b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\2\0\0\0\0{}", b'\0\0\0\x0f\0\0\0\0{"kind":"ping"}'):
        with socket.create_connection(("127.0.0.1", group._membership._listener.port), timeout=5) as stranger:
            stranger.sendall(message)
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(1) == b""
    assert close_to(group.run(items).logits, kit.whole_logits(directory, items))
    assert group.status.num_reforms == 0


def test_the_overhead_is_small(open_group, directory, kit):
    """Not the target, which a quiet machine shows: that nothing waits for a clock."""
    group, items = open_group(directory, 2), kit.random_items(8)
    overheads = sorted(group.run(items).overhead_s for _ in range(20))
    assert overheads[10] < 0.02
