"""A sample of a served model's texts is looked at, and a failing look costs no answer."""

import pytest

from fewshard_core.values import TextInput
from fewshard_serve.backends.load import load_model

TEXTS = ["a fine film", "two hours i want back", "warm"]


@pytest.fixture(scope="module", params=["sst2-moe", "sst2-dense"])
def model(request):
    return load_model("m", f"zoo:{request.param}", "cpu", "fp32")


def run(model, times=1):
    items = model.prepare([TextInput(text) for text in TEXTS])
    return [model.run(items).logits for _ in range(times)]


def test_nothing_is_looked_at_unless_asked_for(model):
    model.diagnose(0.0)
    run(model)
    assert model.diagnosis() is None


def test_each_batch_is_looked_at_where_the_share_is_whole(model):
    model.diagnose(1.0)
    run(model, 5)
    found = model.diagnosis()
    assert found.num_items == 5
    assert all(0 < share < 1 for share in found.sparsity)
    assert found.class_experts.shape[0] == 2
    if model.info.kind == "moe":
        assert (found.class_experts.sum(axis=(0, 2)) > 0).all()


def test_a_look_changes_no_answer_and_no_count(model):
    model.diagnose(0.0)
    (before,) = run(model)
    counts = model.expert_counts()
    model.diagnose(1.0)
    (after,) = run(model)
    assert after == pytest.approx(before, abs=1e-6)
    if counts is not None:
        again = model.expert_counts()
        assert again.rows.tolist() == [n + len_tokens(model) for n in counts.rows.tolist()]


def len_tokens(model):
    return sum(item.num_tokens for item in model.prepare([TextInput(text) for text in TEXTS]))


def test_a_look_that_fails_costs_no_answer(model, monkeypatch, caplog):
    def fail(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr("fewshard_models.classifier.packed_text.signs_of", fail)
    model.diagnose(1.0)
    assert len(run(model, 3)) == 3
    assert model.diagnosis() is None
    assert caplog.text.count("could not be looked at") == 1
