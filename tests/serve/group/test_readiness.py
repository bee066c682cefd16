"""What a whole group prepares for losses, and what a loss then uses; `test_losses` has real shards."""

import pytest

from fewshard_models.sharding import contiguous
from fewshard_serve.group import readiness
from fewshard_serve.group.readiness import GroupRules
from fewshard_serve.group.shard_runtime import Prepared
from fewshard_serve.group.state_machine import GroupStateMachine

EXPERTS, SHARDS = 8, 4
TARGET = contiguous(2, EXPERTS, SHARDS, EXPERTS)


class Driven:
    """A state machine whose orders everybody obeys at once, but for standbys, which are noted."""

    def __init__(self, num_spares=0, backend="gloo"):
        self.machine = GroupStateMachine(GroupRules(SHARDS, EXPERTS, num_spares=num_spares), TARGET, self)
        self.machine.backend = backend
        self.spares, self.standbys, self.formed, self._to_do = {}, [], [], []
        for shard in range(1, SHARDS):
            self.joins(shard)

    def joins(self, shard):
        self.machine.joined(shard)
        self._work()

    def loses(self, shard):
        """Return the formation that follows."""
        self.machine.left(shard, "dead")
        self._work()
        return self.formed[-1]

    def fails(self):
        self.machine.failed(self.formed[-1].generation)
        self._work()
        return self.formed[-1]

    def all_stand_by(self, but=()):
        for shard, number, _, _ in self.standbys:
            if shard not in but:
                self.machine.prepared(shard, Prepared("stand_by", number))

    def _work(self):
        while self._to_do:
            self._to_do.pop(0)()

    def stage(self, shard, formation):
        report = Prepared("stage", formation.generation)
        self._to_do.append(lambda: self.machine.prepared(shard, report))

    def connect(self, shard, generation):
        self._to_do.append(lambda: self.machine.prepared(shard, Prepared("connect", generation)))

    def publish(self, formation, newcomers):
        self.formed.append(formation)
        self._to_do.append(lambda: self.machine.activated(formation.generation))

    def halt(self, generation):
        pass

    def keep_spares(self, shard, blocks):
        self.spares[shard] = blocks

    def stand_by(self, shard, number, generation, live):
        self.standbys.append((shard, number, generation, live))


def test_connections_are_made_beforehand_for_the_loss_of_each_worker():
    group = Driven()
    lives = {live for _, _, _, live in group.standbys}
    assert lives == {(0, 2, 3), (0, 1, 3), (0, 1, 2)}, "without a leader there is no group"
    assert {generation for _, _, generation, _ in group.standbys} == {1}
    (number,) = {number for _, number, _, live in group.standbys if live == (0, 1, 3)}
    group.all_stand_by()
    group.standbys.clear()
    formation = group.loses(2)
    assert (formation.live, formation.standby) == ((0, 1, 3), number)
    assert group.standbys == [], "the survivors wait for the replacement"
    group.joins(2)
    assert {generation for _, _, generation, _ in group.standbys} == {group.formed[-1].generation}


def test_connections_that_one_has_not_made_yet_are_not_used():
    group = Driven()
    group.all_stand_by(but=[1])
    assert group.loses(2).standby == 0


def test_connections_that_one_could_not_make_are_not_used():
    group = Driven()
    shard, number, _, live = group.standbys[0]
    group.machine.prepared(shard, Prepared("stand_by", number, "refused"))
    group.all_stand_by()
    (lost,) = {0, 1, 2, 3} - set(live)
    assert group.loses(lost).standby == 0


def test_the_connections_of_a_formation_that_failed_are_not_used_again():
    group = Driven()
    group.all_stand_by()
    first = group.loses(2)
    again = group.fails()
    assert first.live == again.live == (0, 1, 3)
    assert (bool(first.standby), bool(again.standby)) == (True, False)


def test_two_losses_at_once_connect_anew():
    group = Driven()
    group.all_stand_by()
    group.machine.left(2, "dead")
    formation = group.loses(3)
    assert (formation.live, formation.standby, formation.is_complete) == ((0, 1), 0, True)


@pytest.mark.parametrize(("limit", "backend"), [(SHARDS - 1, "gloo"), (SHARDS, "nccl")])
def test_large_groups_and_those_of_nccl_connect_when_they_must(monkeypatch, limit, backend):
    monkeypatch.setattr(readiness, "MAX_STANDBY_SHARDS", limit)
    group = Driven(backend=backend)
    assert group.standbys == []
    assert group.loses(1).standby == 0


def test_spares_are_ordered_for_a_whole_group_and_used_after_a_loss():
    group = Driven(num_spares=100)
    assert set(group.spares) == {0, 1, 2, 3}
    formation = group.loses(2)
    for shard in (0, 1, 3):
        for layer, blocks in enumerate(group.spares[shard]):
            now = set(formation.placement.experts_on(shard)[layer])
            more = now - set(TARGET.experts_on(shard)[layer])
            assert not more or sorted(more) in blocks
    assert Driven().spares == {}, "none where no memory is given to them"
