"""Passes of one model in several threads at once: the answers, counts and diagnoses of passes one by one."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from fewshard_core.values import TokenRouting
from fewshard_models.checkpoint import ZOO
from fewshard_models.classifier.load import load
from fewshard_models.classifier.network import NetworkClassifier
from fewshard_models.classifier.overlap import SharedLock

NAMES = sorted(folder.name for folder in ZOO.iterdir())


def batches_of(model: NetworkClassifier) -> list:
    """Return batches of several sizes, so that threads are at different places of the network."""
    items = model.prepare(model.preprocessor.usual_inputs(24))
    return [items[start : start + size] for size in (1, 2, 5, 8) for start in range(0, 24, size)]


@pytest.mark.parametrize("name", NAMES)
def test_the_answers_are_those_of_passes_one_by_one(name: str) -> None:
    model = load(f"zoo:{name}", "cpu")
    assert model.can_overlap
    batches = batches_of(model)
    expected = [model.run(batch).logits for batch in batches]
    before = model.expert_counts() if hasattr(model, "expert_counts") else None
    with ThreadPoolExecutor(4) as pool:
        found = [output.logits for output in pool.map(model.run, batches)]
    for each, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(each, other)
    if before is not None:
        assert np.array_equal(model.expert_counts().tokens, 2 * before.tokens), "none is lost"


def test_watched_passes_see_their_own_tokens_alone() -> None:
    model = load("zoo:sst2-moe", "cpu")
    model.diagnose(0.5)
    batches = batches_of(model)[:40]

    def watched(batch: list) -> list:
        own = [replace(item, routing=TokenRouting([])) for item in batch]
        model.run(own)
        return [item.routing.experts for item in own if item.routing is not None]

    expected = [watched(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        plain = [pool.submit(model.run, batch) for batch in batches]
        assert list(pool.map(watched, batches)) == expected
        assert all(future.result().logits.size for future in plain)
    diagnosis = model.diagnosis()
    assert diagnosis is not None
    by_layer = diagnosis.class_experts.sum(axis=(0, 2))
    assert (by_layer == by_layer[0]).all(), "every layer saw the tokens of the same texts"


def test_an_exclusive_holder_is_alone_and_waits_for_no_newcomer() -> None:
    lock, inside, log = SharedLock(), threading.Event(), []
    leave = threading.Event()

    def share() -> None:
        with lock.shared():
            inside.set()
            assert leave.wait(10)
            log.append("shared")

    def alone() -> None:
        with lock.exclusive():
            log.append("alone")

    def late() -> None:
        with lock.shared():
            log.append("late")

    first = threading.Thread(target=share)
    first.start()
    assert inside.wait(10)
    with lock.shared():
        log.append("beside")
    second = threading.Thread(target=alone)
    second.start()
    while not lock._door.locked():
        pass
    third = threading.Thread(target=late)
    third.start()
    assert log == ["beside"]
    leave.set()
    for thread in (first, second, third):
        thread.join(10)
    assert log == ["beside", "shared", "alone", "late"]
