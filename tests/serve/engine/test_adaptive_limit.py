"""The limit that learns: driven by a device of a known speed, second by second."""

import heapq

import pytest

from fewshard_serve.core import ANYBODY, Caller
from fewshard_serve.engine.adaptive_share import MAX_CUT, AdaptiveShare
from fewshard_serve.engine.admission import START_ITEMS, Admission
from fewshard_serve.errors import Overloaded

TARGET_S = 1.0
MAX_ITEMS = 4096


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


class Device:
    """Serves first in, first out, `rate` items a second; `waits` has what each admitted item waited."""

    def __init__(self, rate, **more):
        self.clock, self.rate, self.free_at = Clock(), rate, 0.0
        more = {"min_items": 8, "target_wait_s": TARGET_S, **more}
        self.admission = Admission("m", MAX_ITEMS, 10**9, self.clock, **more)
        self.running, self.waits, self.num_refused, self.num_served = [], [], 0, 0
        self.busy_s = 0.0

    def offer(self, rate, seconds, caller=ANYBODY):
        """Single items at even times."""
        self.waits, self.num_refused, self.num_served, self.busy_s = [], 0, 0, 0.0
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now += 1 / rate
            self._finish()
            try:
                ticket = self.admission.admit(1, 25, caller)
            except Overloaded:
                self.num_refused += 1
                continue
            starts_at = max(self.free_at, self.clock.now)
            self.free_at = starts_at + 1 / self.rate
            self.busy_s += 1 / self.rate
            heapq.heappush(self.running, (self.free_at, id(ticket), starts_at - self.clock.now, ticket))

    def _finish(self):
        while self.running and self.running[0][0] <= self.clock.now:
            _, _, wait_s, ticket = heapq.heappop(self.running)
            ticket.note_wait(wait_s)
            ticket.release()
            self.waits.append(wait_s)
            self.num_served += 1


@pytest.mark.parametrize("rate", [20, 150, 1000])
def test_under_twice_the_load_waits_settle_at_the_target_and_the_device_stays_busy(rate):
    device = Device(rate)
    device.offer(2 * rate, 60)
    device.offer(2 * rate, 30)
    assert max(device.waits) < 1.3 * TARGET_S
    assert device.num_served >= 0.97 * rate * 30, "goodput"
    assert device.num_refused > 0.4 * 2 * rate * 30


def test_a_load_that_fits_is_never_refused():
    device = Device(150)
    device.offer(140, 60)
    assert device.num_refused == 0


def test_a_device_that_slows_down_is_followed():
    device = Device(1000)
    device.offer(2000, 30)
    device.rate = 50
    device.offer(2000, 30)
    device.offer(2000, 30)
    assert max(device.waits) < 1.3 * TARGET_S
    assert device.num_served >= 0.95 * 50 * 30


def test_a_device_that_speeds_up_is_followed():
    device = Device(50)
    device.offer(2000, 30)
    device.rate = 1000
    device.offer(2000, 30)
    device.offer(2000, 20)
    assert device.num_served >= 0.95 * 1000 * 20


def test_the_bounds_of_the_configuration_hold():
    slow = Device(2, min_items=16)
    slow.offer(20, 250)
    assert slow.admission.limit_items == 16
    fast = Device(10**6)
    fast.offer(10**5, 3)
    assert fast.num_refused == 0
    assert fast.admission.limit_items == START_ITEMS, "nothing was refused: nothing to learn"


def test_one_odd_wait_cuts_so_far_and_no_further():
    clock = Clock()
    share = AdaptiveShare(floor=0.001, start=1.0, target_s=1.0, clock=clock)
    for _ in range(10):
        share.observe(wait_s=1000.0, load=1.0)
    assert share.share == 1 / MAX_CUT, "all of the same moment"


def test_the_limit_does_not_grow_beyond_what_is_served_in_the_wanted_wait():
    """Requests that wait where nobody sees it, say, to be read."""
    clock = Clock()
    share = AdaptiveShare(floor=0.001, start=0.2, target_s=1.0, clock=clock, served=lambda: 0.3)
    for _ in range(20):
        share.note_refusal()
        clock.now += 0.2
        share.observe(wait_s=0.1, load=1.0)
    assert share.share == 0.3


def test_a_flood_leaves_room_for_a_newcomer():
    """One caller floods; another gets nearly all its answers."""
    device = Device(150)
    device.offer(600, 30, Caller("flood"))
    refused = 0
    for _ in range(100):
        device.offer(600, 0.1, Caller("flood"))
        try:
            device.admission.admit(1, 25, Caller("guest")).release(served=False)
        except Overloaded:
            refused += 1
    assert refused <= 5, "moments after the limit was cut"


def test_room_is_shared_equally_between_floods():
    device = Device(150)
    callers = [Caller(str(n)) for n in range(4)]
    held = dict.fromkeys(callers, 0)
    for _ in range(10_000):
        for caller in callers:
            held[caller] += admitted(device.admission, caller)
    assert max(held.values()) - min(held.values()) <= 1
    assert 0.9 * START_ITEMS < sum(held.values()) < START_ITEMS


def admitted(admission, caller, num_items=1, tickets=None):
    try:
        ticket = admission.admit(num_items, 25, caller)
    except Overloaded:
        return False
    if tickets is not None:
        tickets.append(ticket)
    return True


def test_the_urgent_may_use_the_reserve():
    device = Device(150)
    floods, urgent = [Caller("a"), Caller("b")], Caller("a", is_urgent=True)
    for _ in range(START_ITEMS):
        for flood in floods:
            admitted(device.admission, flood)
    num_admitted = device.admission.num_items
    assert 0.8 * START_ITEMS < num_admitted < START_ITEMS
    for _ in range(num_admitted, START_ITEMS):
        device.admission.admit(1, 25, urgent)


def test_one_caller_alone_may_hold_all_the_room():
    device = Device(150)
    for _ in range(START_ITEMS // 64):
        device.admission.admit(64, 64, Caller("a"))
    assert not admitted(device.admission, Caller("a"))


def test_a_flood_of_larger_requests_never_keeps_a_small_caller_out():
    """A hundred connections send 16 items each, again and again; beside them one item is asked for."""
    admission = Admission("m", 64, 10**6, Clock())
    flood, guest = Caller("flood"), Caller("guest")
    running = []
    for _ in range(200):
        while admitted(admission, flood, 16, running):
            pass
        assert admission.num_items >= 48
        with admission.admit(1, 25, guest):
            for _ in range(100):
                admitted(admission, flood, 16, running)
            assert admission.num_items <= 65
        running.pop(0).release()


def test_a_small_caller_is_let_in_after_the_limit_fell_but_many_together_are_not():
    device = Device(150)
    ticket = device.admission.admit(START_ITEMS, 1000, Caller("flood"))
    device.clock.now += 1
    ticket.note_wait(8 * TARGET_S)
    limit = device.admission.limit_items
    assert limit < START_ITEMS / 4
    assert admitted(device.admission, Caller("guest"))
    before = device.admission.num_items
    for number in range(1000):
        admitted(device.admission, Caller(str(number)))
    assert device.admission.num_items - before <= limit / 4


def test_a_request_above_the_present_limit_is_taken_when_nothing_else_is():
    device = Device(150)
    ticket = device.admission.admit(START_ITEMS + 100, 0)
    with pytest.raises(Overloaded):
        device.admission.admit(1, 0)
    ticket.release()
    device.admission.check()


def test_the_early_check_refuses_what_admit_would():
    device = Device(150)
    device.admission.check(Caller("x"))
    device.admission.admit(START_ITEMS, 0, Caller("x"))
    with pytest.raises(Overloaded):
        device.admission.check(Caller("x"))
    with pytest.raises(Overloaded):
        device.admission.admit(1, 0, Caller("x"))
