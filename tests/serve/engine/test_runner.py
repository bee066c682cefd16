"""The runner's thread: which lane it serves, when it cuts, how it ends."""

import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from fewshard_core.values import Execution, Item, ModelOutput
from fewshard_serve.engine.queue import Entry
from fewshard_serve.engine.runner import Runner
from fewshard_serve.engine.scheduled_model import ScheduledModel
from fewshard_serve.engine.settings import BatchingSettings
from fewshard_serve.errors import DeadlineExceeded, NotReady

NEVER = float("inf")


class Someone:
    is_gone = False

    def settle(self, resolution):
        raise AssertionError("the runner hands resolutions to deliver")


class Bench:
    """A runner over lanes, and everything it delivered."""

    def __init__(self, *lanes, on_batch=None, **options):
        self.lanes = lanes
        self.stats = []
        self.deliveries = []
        self.runner = Runner(lanes, self.deliveries.append, on_batch or self.stats.append, **options)

    def submit(self, lane, *texts, deadline_at=NEVER, caller=None):
        now = time.monotonic()
        entries = [
            Entry(Item(text, len(text)), caller or Someone(), index, now, deadline_at)
            for index, text in enumerate(texts)
        ]
        self.runner.submit(lane, entries)

    def outcomes(self):
        return [resolution for delivery in self.deliveries for resolution in delivery]

    def wait_for(self, num_outcomes, within_s=5.0):
        give_up_at = time.monotonic() + within_s
        while len(self.outcomes()) < num_outcomes:
            assert time.monotonic() < give_up_at, f"{len(self.outcomes())} of {num_outcomes} outcomes"
            time.sleep(0.002)


@pytest.fixture
def bench(request):
    made = []

    def make(*lanes, **kwargs):
        made.append(Bench(*lanes, **kwargs))
        made[-1].runner.start()
        return made[-1]

    yield make
    for one in made:
        for lane in one.lanes:
            lane.model.gate.set()
        assert one.runner.stop(5.0)


def test_a_batch_is_answered_with_one_delivery(bench, model):
    lane = ScheduledModel(model, BatchingSettings())
    one = bench(lane)
    one.submit(lane, "1", "22", "3")
    one.wait_for(3)
    assert len(one.deliveries) == 1
    assert [resolution.outcome[0] for resolution in one.outcomes()] == [1, 22, 3]
    (stats,) = one.stats
    assert (stats.model, stats.num_items, stats.num_tokens, stats.num_padding_tokens) == ("fake", 3, 4, 1)
    assert len(stats.queue_s) == 3


def test_what_arrives_while_a_batch_runs_forms_the_next(bench, model):
    lane = ScheduledModel(model, BatchingSettings())
    one = bench(lane)
    model.gate.clear()
    one.submit(lane, "1")
    assert model.running.wait(5)
    for text in "2345":
        one.submit(lane, text)
    model.gate.set()
    one.wait_for(5)
    assert model.batches == [["1"], ["2", "3", "4", "5"]]


def test_those_who_ended_in_one_batch_fall_into_two_halves(model):
    lane = ScheduledModel(model, BatchingSettings())
    now = time.monotonic()

    def arrive(number):
        lane.queue.extend([Entry(Item("text", 4), Someone(), 0, now, NEVER) for _ in range(number)])

    sizes, waiting = [], 64
    for _ in range(6):
        arrive(waiting)
        sizes.append(len(lane.cut(now).batch))
        waiting = sizes[-2] if len(sizes) > 1 else 0  # who was answered meanwhile comes again
    assert sizes == [32, 32, 32, 32, 32, 32]


def test_small_batches_and_equal_ones_are_taken_whole(model):
    lane = ScheduledModel(model, BatchingSettings())
    now = time.monotonic()
    for number, taken in ((16, 16), (3, 3), (16, 16), (100, 58), (0, 42)):
        lane.queue.extend([Entry(Item("text", 4), Someone(), 0, now, NEVER) for _ in range(number)])
        assert len(lane.cut(now).batch) == taken


def test_the_oldest_head_goes_first(bench, new_model):
    lanes = [ScheduledModel(new_model(name), BatchingSettings(max_items=1)) for name in "ab"]
    one = bench(*lanes)
    lanes[0].model.gate.clear()
    one.submit(lanes[0], "0")
    assert lanes[0].model.running.wait(5)
    for lane, text in ((lanes[1], "1"), (lanes[0], "2"), (lanes[1], "3"), (lanes[0], "4")):
        one.submit(lane, text)
    lanes[0].model.gate.set()
    one.wait_for(5)
    assert [resolution.outcome[0] for resolution in one.outcomes()] == [0, 1, 2, 3, 4]


def test_without_a_window_an_idle_runner_starts_at_once(bench, model):
    lane = ScheduledModel(model, BatchingSettings())
    one = bench(lane)
    one.submit(lane, "1")
    one.wait_for(1)
    assert one.outcomes()[0].queue_s < 0.1


def test_a_window_gathers_a_batch_and_then_ends(bench, model):
    lane = ScheduledModel(model, BatchingSettings(max_wait_ms=150))
    one = bench(lane)
    for text in "123":
        one.submit(lane, text)
        time.sleep(0.01)
    one.wait_for(3)
    assert model.batches == [["1", "2", "3"]]
    assert 0.14 <= one.outcomes()[0].queue_s < 1.0


@pytest.mark.parametrize("limits", [{"max_items": 2}, {"max_tokens": 2}])
def test_a_full_batch_does_not_wait_for_the_window(bench, model, limits):
    lane = ScheduledModel(model, BatchingSettings(max_wait_ms=20_000, **limits))
    one = bench(lane)
    one.submit(lane, "1", "2")
    one.wait_for(2, within_s=2.0)


def test_a_window_of_one_model_does_not_hold_another(bench, new_model):
    patient = ScheduledModel(new_model("patient"), BatchingSettings(max_wait_ms=300))
    prompt = ScheduledModel(new_model("prompt"), BatchingSettings())
    one = bench(patient, prompt)
    one.submit(patient, "1")
    one.submit(prompt, "2")
    one.wait_for(2)
    assert [resolution.outcome[0] for resolution in one.outcomes()] == [2, 1]


def test_expired_entries_are_answered_and_never_run(bench, model):
    lane = ScheduledModel(model, BatchingSettings())
    one = bench(lane)
    one.submit(lane, "1", deadline_at=time.monotonic() - 1)
    one.wait_for(1)
    assert isinstance(one.outcomes()[0].outcome, DeadlineExceeded)
    assert model.batches == []
    assert one.stats == []


def test_expired_entries_do_not_share_one_exception(bench, model):
    lane = ScheduledModel(model, BatchingSettings())
    one = bench(lane)
    one.submit(lane, "1", "2", deadline_at=time.monotonic() - 1)
    one.wait_for(2)
    first, second = (resolution.outcome for resolution in one.outcomes())
    assert first is not second


def test_the_abandoned_are_dropped_in_silence(bench, model):
    lane = ScheduledModel(model, BatchingSettings())
    one = bench(lane)
    gone = Someone()
    gone.is_gone = True
    one.submit(lane, "1", caller=gone)
    one.submit(lane, "2")
    one.wait_for(1)
    assert model.batches == [["2"]]
    assert len(one.outcomes()) == 1


def test_stop_answers_what_is_queued_and_refuses_the_rest(bench, model):
    lane = ScheduledModel(model, BatchingSettings(max_wait_ms=30_000, max_items=4))
    one = bench(lane)
    one.submit(lane, "1", "2", "3")
    assert one.runner.stop(5.0)
    assert [resolution.outcome[0] for resolution in one.outcomes()] == [1, 2, 3]
    with pytest.raises(NotReady):
        one.submit(lane, "4")
    assert not one.runner.is_alive


def test_stop_says_when_time_ran_out(bench, model):
    lane = ScheduledModel(model, BatchingSettings())
    one = bench(lane)
    model.gate.clear()
    one.submit(lane, "1")
    assert one.runner.stop(0.05) is False
    model.gate.set()
    assert one.runner.stop(5.0) is True


def test_stuck_is_told_from_idle_and_busy(bench, model):
    lane = ScheduledModel(model, BatchingSettings())
    one = bench(lane)
    assert one.runner.stuck_s == 0.0
    model.gate.clear()
    one.submit(lane, "1")
    assert model.running.wait(5)
    time.sleep(0.05)
    assert one.runner.stuck_s >= 0.04
    model.gate.set()
    one.wait_for(1)
    assert one.runner.stuck_s == 0.0


def numbers(*bounds):
    return [str(number) for number in range(*bounds)]


def wait_until(condition, within_s=5.0):
    give_up_at = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.002)


def test_a_second_batch_is_handed_over_once_it_would_not_grow(bench, model):
    lane = ScheduledModel(model, BatchingSettings())
    one = bench(lane, depth=2)
    model.gate.clear()
    one.submit(lane, *numbers(16))
    assert model.running.wait(5)
    one.submit(lane, *numbers(16, 31))
    time.sleep(0.05)
    assert len(model.batches) == 1, "15 wait while 16 run: the next batch may still become larger"
    one.submit(lane, "31")
    wait_until(lambda: len(model.batches) == 2)
    one.submit(lane, *numbers(32, 100))
    time.sleep(0.05)
    assert len(model.batches) == 2, "two at a time are enough"
    model.gate.set()
    one.wait_for(100)
    assert [int(resolution.outcome[0]) for resolution in sorted(one.outcomes(), key=answer)] == [*range(100)]


def answer(resolution):
    return resolution.outcome[0]


def test_nothing_is_handed_over_ahead_of_an_older_head(bench, new_model):
    lanes = [ScheduledModel(new_model(name), BatchingSettings()) for name in "ab"]
    one = bench(*lanes, depth=2)
    lanes[0].model.gate.clear()
    one.submit(lanes[0], *numbers(16))
    assert lanes[0].model.running.wait(5)
    one.submit(lanes[1], "16")
    one.submit(lanes[0], *numbers(17, 40))
    time.sleep(0.05)
    assert (len(lanes[0].model.batches), lanes[1].model.batches) == (1, [])
    lanes[0].model.gate.set()
    one.wait_for(40)
    assert lanes[1].model.batches == [["16"]]


def test_waiting_behind_another_batch_is_time_in_the_queue(bench, model):
    now, ends = [0.0], {"0": threading.Event(), "16": threading.Event()}

    def run(items):
        handed.append(items[0].features)
        assert ends[items[0].features].wait(5)
        return ModelOutput(np.zeros((len(items), 2), np.float32))

    lane, handed, model.run = ScheduledModel(model, BatchingSettings()), [], run
    one = bench(lane, depth=2, clock=lambda: now[0])
    entries = [Entry(Item(text, 1), Someone(), 0, 0.0, NEVER) for text in numbers(32)]
    one.runner.submit(lane, entries[:16])
    wait_until(lambda: handed == ["0"])
    one.runner.submit(lane, entries[16:])
    wait_until(lambda: handed == ["0", "16"])
    now[0] = 3.0
    assert one.runner.stuck_s == 3.0
    ends["0"].set()
    one.wait_for(16)
    assert one.runner.stuck_s == 0.0, "the second one has just begun"
    now[0] = 5.0
    ends["16"].set()
    one.wait_for(32)
    assert [(stats.queue_s[0], stats.infer_s) for stats in one.stats] == [(0.0, 3.0), (3.0, 2.0)]


def test_as_many_batches_run_as_there_are_streams(bench, model):
    model.info = replace(model.info, execution=Execution(num_streams=2))
    now, ends = [0.0], {text: threading.Event() for text in numbers(4)}

    def run(items):
        handed.append(items[0].features)
        assert ends[items[0].features].wait(5)
        return ModelOutput(np.zeros((len(items), 2), np.float32))

    lane, handed, model.run = ScheduledModel(model, BatchingSettings(max_items=1)), [], run
    one = bench(lane, depth=3, clock=lambda: now[0])
    for text in numbers(4):
        now[0] += 1.0
        one.runner.submit(lane, [Entry(Item(text, 1), Someone(), 0, now[0], NEVER)])
        wait_until(lambda number=int(text): len(handed) == min(number + 1, 3))
    assert one.runner.stuck_s == 3.0, "the first one began at 1"
    now[0] = 5.0
    ends["1"].set()
    one.wait_for(1)
    wait_until(lambda: len(handed) == 4)
    assert one.runner.stuck_s == 4.0, "one that ends says nothing of another that hangs"
    now[0] = 6.0
    ends["0"].set()
    one.wait_for(2)
    assert one.runner.stuck_s == 1.0, "the third one began when the second had ended"
    for end in ends.values():
        end.set()
    one.wait_for(4)
    assert [(stats.queue_s[0], stats.infer_s) for stats in one.stats][:2] == [(0.0, 3.0), (0.0, 5.0)]
    assert sorted(stats.queue_s[0] for stats in one.stats[2:]) == [2.0, 2.0]


def test_one_item_does_not_wait_for_a_batch_if_a_stream_is_free(bench, model):
    model.info = replace(model.info, execution=Execution(num_streams=2))
    lane = ScheduledModel(model, BatchingSettings())
    one = bench(lane, depth=3)
    model.gate.clear()
    for text in numbers(2):
        one.submit(lane, text)
        wait_until(lambda number=int(text): len(model.batches) == number + 1)
    one.submit(lane, "2")
    time.sleep(0.05)
    assert model.batches == [["0"], ["1"]], "no stream is free for the third"


def test_all_in_flight_are_failed_together(bench, model):
    lane = ScheduledModel(model, BatchingSettings())
    one = bench(lane, depth=2)
    model.gate.clear()
    one.submit(lane, *numbers(16))
    assert model.running.wait(5)
    one.submit(lane, *numbers(16, 32))
    wait_until(lambda: len(model.batches) == 2)
    one.submit(lane, "32")
    one.runner.fail_all(NotReady("hangs"))
    assert [type(resolution.outcome) for resolution in one.outcomes()] == [NotReady] * 33


def test_idleness_before_a_batch_is_not_counted_as_its_time(model):
    now = [0.0]
    lane = ScheduledModel(model, BatchingSettings())
    runner = Runner([lane], [].append, [].append, clock=lambda: now[0])
    now[0] = 1000.0
    runner.submit(lane, [Entry(Item("1", 1), Someone(), 0, 1000.0, NEVER)])
    assert runner._schedule() is not None
    assert runner.stuck_s == 0.0


def test_a_failing_observer_does_not_end_the_thread(bench, model, caplog):
    def observe(stats):
        raise ValueError("observer")

    lane = ScheduledModel(model, BatchingSettings())
    one = bench(lane, on_batch=observe)
    one.submit(lane, "1")
    one.wait_for(1)
    one.submit(lane, "2")
    one.wait_for(2)
    assert "on_batch callback failed" in caplog.text


@pytest.mark.parametrize("depth", [1, 2])
def test_many_submitters_lose_nothing(bench, new_model, depth):
    lanes = [ScheduledModel(new_model(name), BatchingSettings(max_items=7, max_tokens=20)) for name in "abc"]
    one = bench(*lanes, depth=depth)

    def submit(worker):
        for number in range(100):
            one.submit(lanes[(worker + number) % 3], str(worker * 1000 + number))

    workers = [threading.Thread(target=submit, args=(worker,)) for worker in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    one.wait_for(400)
    answers = sorted(int(resolution.outcome[0]) for resolution in one.outcomes())
    assert answers == sorted(worker * 1000 + number for worker in range(4) for number in range(100))
    assert sum(stats.num_items for stats in one.stats) == 400


def test_after_running_out_of_memory_batches_are_smaller(bench, model, caplog):
    def run(items):
        sizes.append(len(items))
        if len(items) > 3:
            raise MemoryError
        return ModelOutput(np.array([[float(item.features), 0.0] for item in items], np.float32))

    lane, sizes, model.run = ScheduledModel(model, BatchingSettings()), [], run
    one = bench(lane)
    one.submit(lane, *"123456")
    one.wait_for(6)
    assert sizes == [6, 3, 3]
    assert (lane.max_items, lane.max_tokens) == (3, 3)
    assert "out of memory; batches now hold 3 tokens and 3 items" in caplog.text
    one.submit(lane, *"123456")
    one.wait_for(12)
    assert sizes == [6, 3, 3, 3, 3]


@pytest.mark.parametrize(
    ("device", "asked", "tokens"), [("cpu", None, 4096), ("cuda:0", None, 16384), ("cpu", 9000, 9000)]
)
def test_a_batch_has_as_many_tokens_as_suit_the_device(new_model, device, asked, tokens):
    model = new_model("fake")
    model.info = replace(model.info, device=device)
    assert ScheduledModel(model, BatchingSettings(max_tokens=asked)).max_tokens == tokens
