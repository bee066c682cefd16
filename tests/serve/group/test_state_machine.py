"""Which formation comes next: decisions alone, driven event by event."""

import numpy as np
import pytest

from fewshard_models.sharding import contiguous, round_robin
from fewshard_serve.group.readiness import GroupRules
from fewshard_serve.group.shard_runtime import Prepared
from fewshard_serve.group.state_machine import GroupStateMachine

EXPERTS, SHARDS = 8, 4


class Orders:
    """Writes down what is ordered; `obey` reports that everybody has done it."""

    def __init__(self):
        self.log = []
        self.published = None
        self.expelled = []
        self.halted = []

    def stage(self, shard, formation):
        self.log.append(("stage", shard, formation.generation))

    def connect(self, shard, generation):
        self.log.append(("connect", shard, generation))

    def keep_spares(self, shard, blocks):
        pass

    def stand_by(self, shard, number, generation, live):
        pass

    def publish(self, formation, newcomers):
        self.published = (formation, tuple(newcomers))

    def halt(self, generation):
        self.halted.append(generation)

    def expel(self, shard, reason):
        self.expelled.append(shard)


class Group:
    def __init__(self, slots=EXPERTS, most=EXPERTS, degraded=False):
        self.orders = Orders()
        target = contiguous(2, EXPERTS, SHARDS, slots)
        self.assembly = GroupStateMachine(GroupRules(SHARDS, most, degraded), target, self.orders)

    def join(self, *shards):
        for shard in shards:
            self.assembly.joined(shard)
        return self

    def obey(self):
        """Everybody does what was ordered last, until nothing is left."""
        while self.orders.log:
            phase, shard, generation = self.orders.log.pop(0)
            self.assembly.prepared(shard, Prepared(phase, generation))
        return self

    def take_up(self):
        formation, _ = self.orders.published
        self.assembly.activated(formation.generation)
        return self

    def whole(self):
        return self.join(1, 2, 3).obey().take_up()

    @property
    def live(self):
        return self.assembly.active.live


def test_the_first_formation_waits_for_all_shards():
    group = Group().join(1, 3)
    assert group.orders.log == []
    assert group.assembly.problem == "waiting for shard 2"
    group.join(2)
    assert sorted(group.orders.log) == [("stage", shard, 1) for shard in range(4)]


def test_all_stage_before_any_connects_and_all_connect_before_it_is_published():
    group = Group().join(1, 2, 3)
    for shard in (0, 1, 2):
        group.assembly.prepared(shard, Prepared("stage", 1))
    assert not [order for order in group.orders.log if order[0] == "connect"]
    group.assembly.prepared(3, Prepared("stage", 1))
    connects = [order for order in group.orders.log if order[0] == "connect"]
    assert sorted(connects) == [("connect", shard, 1) for shard in range(4)]
    for shard in (3, 2, 1):
        group.assembly.prepared(shard, Prepared("connect", 1))
    assert group.orders.published is None
    group.assembly.prepared(0, Prepared("connect", 1))
    formation, newcomers = group.orders.published
    assert (formation.live, newcomers) == ((0, 1, 2, 3), (0, 1, 2, 3))
    group.take_up()
    assert (group.assembly.problem, group.live) == ("", (0, 1, 2, 3))


def test_survivors_take_over_and_nobody_new_is_checked():
    group = Group().whole()
    group.assembly.left(2, "dead")
    assert group.orders.halted == [1]
    formation, newcomers = group.obey().orders.published
    assert (formation.live, newcomers, formation.is_complete) == ((0, 1, 3), (), True)
    lost = set(contiguous(2, EXPERTS, SHARDS, EXPERTS).experts_on(2)[0])
    kept = {shard: set(group.assembly.target.experts_on(shard)[0]) for shard in (0, 1, 3)}
    for shard in (0, 1, 3):
        now = set(formation.placement.experts_on(shard)[0])
        assert now >= kept[shard]
        assert now - kept[shard] <= lost
    assert group.take_up().assembly.tally.num_reforms == 1
    assert group.assembly.tally.num_moves == 2 * len(lost)


def test_a_replacement_joins_beside_what_runs_and_everything_is_as_before():
    group = Group().whole()
    group.assembly.left(2, "dead")
    group.obey().take_up().join(2)
    assert group.orders.halted == [1], "the survivors go on meanwhile"
    formation, newcomers = group.obey().orders.published
    assert (formation.live, newcomers) == ((0, 1, 2, 3), (2,))
    assert formation.placement == group.assembly.target


def test_a_second_loss_while_the_first_is_made_good():
    group = Group().whole()
    group.assembly.left(2, "dead")
    group.orders.log.clear()
    group.assembly.left(3, "dead too")
    formation, _ = group.obey().orders.published
    assert (formation.live, formation.is_complete) == ((0, 1), True)


def test_a_loss_drops_the_joiner_that_still_loads():
    group = Group().whole()
    group.assembly.left(1, "dead")
    group.obey().take_up().join(1)
    group.orders.log.clear()
    group.assembly.left(2, "dead")
    formation, newcomers = group.obey().orders.published
    assert (formation.live, newcomers) == ((0, 3), ())
    formation, newcomers = group.take_up().obey().orders.published
    assert (formation.live, newcomers) == ((0, 1, 3), (1,))


def test_reports_of_abandoned_formations_are_ignored():
    group = Group().whole()
    group.assembly.left(2, "dead")
    abandoned = list(group.orders.log)
    group.orders.log.clear()
    group.assembly.left(3, "dead")
    for phase, shard, generation in abandoned * 2:
        group.assembly.prepared(shard, Prepared(phase, generation))
    assert not [order for order in group.orders.log if order[0] == "connect"]
    assert group.obey().orders.published[0].live == (0, 1)


def test_a_failed_batch_without_a_loss_forms_the_same_shards_anew():
    group = Group().whole()
    group.assembly.failed(1)
    formation, newcomers = group.obey().orders.published
    assert (formation.live, formation.generation, newcomers) == ((0, 1, 2, 3), 2, ())
    assert group.take_up().assembly.tally.num_reforms == 0


def test_newcomers_that_answer_wrongly_are_sent_away_and_the_others_go_on():
    group = Group().whole()
    group.assembly.left(2, "dead")
    group.obey().take_up().join(2).obey()
    formation, newcomers = group.orders.published
    group.assembly.answered_wrongly(formation.generation, newcomers, "a logit is off")
    assert group.orders.expelled == [2]
    assert (group.live, group.assembly.problem) == ((0, 1, 3), "")
    assert group.orders.log == []


def test_a_first_formation_that_answers_wrongly_is_hopeless():
    group = Group().join(1, 2, 3).obey()
    group.assembly.answered_wrongly(1, (0, 1, 2, 3), "a logit is off")
    assert (group.assembly.problem, group.assembly.is_unrecoverable) == ("a logit is off", True)


def test_a_survivor_without_room_has_others_take_more():
    group = Group().whole()
    group.assembly.left(2, "dead")
    group.assembly.prepared(1, Prepared("stage", 2, "no memory", lacks_room=True))
    formation, _ = group.obey().orders.published
    assert formation.is_complete
    assert formation.placement.experts_on(1) == group.assembly.target.experts_on(1)


def test_experts_without_room_make_a_problem_that_a_replacement_ends():
    group = Group(slots=2, most=2).whole()
    group.assembly.left(3, "dead")
    assert "shard 3 lost" in group.assembly.problem
    assert group.orders.log == []
    formation, newcomers = group.join(3).obey().orders.published
    assert (formation.live, newcomers) == ((0, 1, 2, 3), (3,))
    assert group.take_up().assembly.problem == ""


def test_where_degraded_answers_are_allowed_the_rest_goes_on():
    group = Group(slots=2, most=2, degraded=True).whole()
    group.assembly.left(3, "dead")
    formation, _ = group.obey().orders.published
    assert (formation.live, formation.is_complete) == ((0, 1, 2), False)
    assert group.take_up().assembly.problem == ""


def test_a_new_target_is_staged_beside_what_runs():
    group = Group().whole()
    group.assembly.retarget(round_robin(2, EXPERTS, SHARDS, EXPERTS))
    assert group.orders.halted == []
    formation, newcomers = group.obey().orders.published
    assert (formation.placement, newcomers) == (group.assembly.target, ())
    assert group.take_up().assembly.tally.num_moves == 12
    assert group.orders.log == [], "nothing is left to do"


def test_a_checkpoint_that_cannot_be_read_is_hopeless_at_first_and_costs_a_member_later():
    group = Group().join(1, 2, 3)
    group.assembly.prepared(2, Prepared("stage", 1, "model.safetensors is damaged"))
    assert group.assembly.is_unrecoverable
    assert "shard 2: model.safetensors is damaged" in group.assembly.problem
    group = Group().whole()
    group.assembly.left(1, "dead")
    group.obey().take_up().join(1)
    group.assembly.prepared(1, Prepared("stage", 3, "damaged"))
    assert group.orders.expelled == [1]
    assert group.live == (0, 2, 3)


@pytest.mark.parametrize("seed", range(30))
def test_whatever_happens_the_formation_in_force_has_live_members_and_every_expert(seed):
    """Random joins, losses, failures and targets; whenever all is done, the members serve everything."""
    rng = np.random.default_rng(seed)
    group = Group().whole()
    for _ in range(60):
        shard = int(rng.integers(1, SHARDS))
        event = rng.integers(5)
        if event == 0:
            group.assembly.left(shard, "dead")
        elif event == 1 and shard not in group.assembly.members:
            group.join(shard)
        elif event == 2:
            group.assembly.failed(group.assembly.active.generation)
        elif event == 3:
            target = (contiguous, round_robin)[rng.integers(2)](2, EXPERTS, SHARDS, EXPERTS)
            group.assembly.retarget(target)
        elif group.orders.log:
            phase, member, generation = group.orders.log.pop(0)
            if member in group.assembly.members:
                group.assembly.prepared(member, Prepared(phase, generation))
    while group.orders.log or group.orders.published:
        group.obey()
        if group.orders.published:
            formation, group.orders.published = group.orders.published[0], None
            group.assembly.activated(formation.generation)
    assert set(group.live) == group.assembly.members
    assert group.assembly.active.is_complete
    if len(group.live) == SHARDS:
        assert group.assembly.active.placement == group.assembly.target


def test_what_is_taken_up_a_moment_after_it_was_given_up_is_formed_anew():
    group = Group().whole()
    group.assembly.left(2, "dead")
    group.obey().take_up().join(2).obey()
    formation, _ = group.orders.published
    group.assembly.left(2, "dead again")
    group.assembly.activated(formation.generation)
    formation, _ = group.obey().orders.published
    assert (formation.live, formation.is_complete) == ((0, 1, 3), True)
    assert group.take_up().live == (0, 1, 3)
