"""One bad item fails alone, whatever the model does."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshard_core.values import Item, ModelOutput
from fewshard_serve.engine.batch import Pacing, execute
from fewshard_serve.errors import DeadlineExceeded, InternalError, ModelRestarted, UnusableItem


def items_of(texts):
    return [Item(text, len(text)) for text in texts]


def outcome_of(executed, index):
    outcome = executed.outcomes[index]
    return type(outcome) if isinstance(outcome, Exception) else float(outcome[0])


def test_a_good_batch_runs_once(model):
    executed = execute(model, items_of(["1", "2", "3"]))
    assert [outcome_of(executed, index) for index in range(3)] == [1, 2, 3]
    assert executed.num_padding_tokens == 1
    assert len(model.batches) == 1


@pytest.mark.parametrize("position", [0, 3, 6])
def test_only_the_culprit_fails(model, position, caplog):
    texts = [str(number) for number in range(7)]
    texts[position] = "crash"
    executed = execute(model, items_of(texts))
    for index, text in enumerate(texts):
        assert outcome_of(executed, index) == (InternalError if text == "crash" else float(text))
    assert len(model.batches) <= 1 + 2 * math.ceil(math.log2(7))
    assert "RuntimeError: device trouble" in caplog.text, "the traceback is logged"


def test_an_error_does_not_quote_the_models_internals(model):
    executed = execute(model, items_of(["crash"]))
    assert "device trouble" not in str(executed.outcomes[0])


def test_a_refusal_of_the_model_is_passed_on(model):
    executed = execute(model, items_of(["1", "refuse"]))
    assert outcome_of(executed, 0) == 1
    assert outcome_of(executed, 1) is UnusableItem


def test_a_batch_too_large_for_the_device_is_halved(new_model):
    model = new_model(max_batch_items=2)
    executed = execute(model, items_of(list("12345")))
    assert [outcome_of(executed, index) for index in range(5)] == [1, 2, 3, 4, 5]


def test_a_row_that_is_not_finite_fails_alone(model):
    executed = execute(model, items_of(["1", "nan", "3"]))
    assert [outcome_of(executed, index) for index in range(3)] == [1, InternalError, 3]


def test_an_item_that_spoils_its_neighbours_rows_fails_alone(model):
    executed = execute(model, items_of(["1", "spoil", "3"]))
    assert [outcome_of(executed, index) for index in range(3)] == [1, InternalError, 3]


def test_logits_of_a_wrong_shape_are_an_internal_error(model):
    model.run = lambda items: ModelOutput(np.zeros(3, np.float32))
    assert outcome_of(execute(model, items_of(["1"])), 0) is InternalError


@pytest.mark.parametrize(("num_ends", "expected"), [(1, 2.0), (2, ModelRestarted)])
def test_a_pass_in_which_the_models_process_ended_is_repeated_once(model, monkeypatch, num_ends, expected):
    ends, passes, run = [None] * num_ends, [], model.run

    def run_or_end(items):
        if ends:
            ends.pop()
            raise ModelRestarted("it ended")
        return run(items)

    monkeypatch.setattr(model, "run", run_or_end)
    executed = execute(model, items_of(["2"]), Pacing(lambda: passes.append(len(passes))))
    assert outcome_of(executed, 0) == expected
    assert len(passes) == 2


def test_every_pass_is_announced(model):
    passes = []
    execute(model, items_of(["1", "crash", "3"]), Pacing(lambda: passes.append(len(model.batches))))
    assert passes == list(range(len(model.batches)))


def test_a_batch_that_nobody_waits_for_any_more_is_not_run(model):
    executed = execute(model, items_of("123"), Pacing(give_up_at=10.0, clock=lambda: 10.0))
    assert [outcome_of(executed, index) for index in range(3)] == [DeadlineExceeded] * 3
    assert not executed.has_run
    assert model.batches == []


def test_the_halves_of_a_failed_batch_are_given_up_once_it_is_late(model):
    times = iter(range(100))
    texts = ["1", "2", "3", "crash"]
    executed = execute(model, items_of(texts), Pacing(give_up_at=2.0, clock=lambda: next(times)))
    assert model.batches == [texts, texts[:2]]
    assert [outcome_of(executed, index) for index in range(4)] == [1, 2, DeadlineExceeded, DeadlineExceeded]


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.sampled_from(["1", "2", "crash", "nan", "refuse"]), min_size=1, max_size=24))
def test_every_item_gets_its_own_outcome(new_model, texts):
    expected = {"1": 1.0, "2": 2.0, "crash": InternalError, "nan": InternalError, "refuse": UnusableItem}
    executed = execute(new_model(), items_of(texts))
    assert [outcome_of(executed, index) for index in range(len(texts))] == [expected[text] for text in texts]


class TorchsOutOfMemoryError(RuntimeError):
    """As torch.OutOfMemoryError, by name and words."""


TorchsOutOfMemoryError.__name__ = "OutOfMemoryError"

OUT_OF_MEMORY = [
    MemoryError(),
    TorchsOutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("could not create a primitive"),
    RuntimeError("could not create a memory object"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_a_batch_without_room_in_memory_is_split_and_says_so(model, error):
    def run(items):
        if len(items) > 2:
            raise error
        return ModelOutput(np.array([[float(item.features), 0.0] for item in items], np.float32))

    model.run = run
    executed = execute(model, items_of("12345"))
    assert [outcome_of(executed, index) for index in range(5)] == [1, 2, 3, 4, 5]
    assert executed.was_out_of_memory


def test_another_error_is_not_taken_for_a_lack_of_memory(model):
    assert not execute(model, items_of(["1", "crash"])).was_out_of_memory


def test_an_item_without_room_even_alone_is_told_so(model):
    def run(items):
        raise MemoryError

    model.run = run
    executed = execute(model, items_of("1"))
    assert executed.was_out_of_memory
    assert "not enough memory" in str(executed.outcomes[0])
