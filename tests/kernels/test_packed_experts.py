"""Packed experts: the same layer as with plain weights, in whichever arithmetic was measured the fastest."""

import copy
import itertools
import json
import math
import pickle
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewshard_kernels import ExpertWeights, PackedCache, Routing, force_path, moe_ffn, pack_experts
from fewshard_kernels.moe_ffn import layout_timing
from fewshard_kernels.moe_ffn.batch_plan import Cost
from fewshard_kernels.moe_ffn.layouts import BatchedLayout, OneDnnLayout, PlainLayout, TransposedLayout
from fewshard_kernels.moe_ffn.packed import PackedExperts

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


def make(
    experts: int,
    hidden: int,
    width: int,
    dtype: torch.dtype = torch.float32,
    gated: bool = False,
    bias: bool = True,
) -> ExpertWeights:
    generator = torch.Generator().manual_seed(experts + 31 * hidden + width)
    rows = 2 * width if gated else width

    def random(*shape: int, scale: float) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(dtype)

    return ExpertWeights(
        random(experts, rows, hidden, scale=hidden**-0.5),
        random(experts, rows, scale=0.1) if bias else None,
        random(experts, hidden, width, scale=width**-0.5),
        random(experts, hidden, scale=0.1) if bias else None,
    )


def assert_as_plain(x: Tensor, router: Tensor | Routing, weights: ExpertWeights, packed, **options) -> None:
    """Against the reference in float32 on the same (rounded) weights."""
    exact = ExpertWeights(*(None if tensor is None else tensor.float() for tensor in weights))
    with force_path("reference"):
        expected, expected_stats = moe_ffn(x.float(), router, *exact, **options)
    y, stats = moe_ffn(x, router, packed, **options)
    assert y.dtype == x.dtype
    tolerance = TOLERANCE[x.dtype]
    scale = expected.abs().max().item() if expected.numel() else 1.0
    torch.testing.assert_close(y.float(), expected, atol=tolerance * max(scale, 1.0), rtol=tolerance)
    assert stats.expert_rows.tolist() == expected_stats.expert_rows.tolist()


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", ["gelu", "gelu_pytorch_tanh", "relu", "silu"])
@pytest.mark.parametrize(
    ("tokens", "hidden", "width", "experts", "top_k"),
    [(1, 100, 60, 8, 1), (7, 600, 36, 4, 3), (90, 32, 100, 3, 2)],
)
def test_packed_equals_plain(dtype, gated, activation, tokens, hidden, width, experts, top_k):
    weights = make(experts, hidden, width, dtype, gated, bias=tokens != 7)
    packed = pack_experts(*weights, gated=gated)
    x = torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(1)).to(dtype)
    router = torch.randn(experts, hidden, generator=torch.Generator().manual_seed(2)) / hidden**0.5
    assert_as_plain(x, router, weights, packed, gated=gated, activation=activation, top_k=top_k)


LAYOUTS = {
    "plain": PlainLayout,
    "transposed": TransposedLayout,
    "float32": lambda weights, gated: OneDnnLayout(weights, gated, torch.float32),
    "own": lambda weights, gated: OneDnnLayout(weights, gated, weights.w1.dtype),
    "batched": BatchedLayout,
}
COST = Cost((1, 512), (1.0, 512.0))


@pytest.mark.parametrize("layout", list(LAYOUTS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(1, 4, 1), (9, 1, 1), (200, 5, 2), (12, 40, 8)])
def test_every_layout_equals_plain(layout, dtype, bias, gated, tokens, experts, top_k):
    weights = make(experts, 20, 36, dtype, gated, bias)
    tiers = (layout_timing.Tier(math.inf, LAYOUTS[layout](weights, gated)),)
    packed = PackedExperts(weights, gated, layout_timing.Choice(tiers, COST, None, None))
    x, router = torch.randn(tokens, 20).to(dtype), torch.randn(experts, 20) / 4
    assert_as_plain(x, router, weights, packed, gated=gated, top_k=top_k, activation="silu")


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(0, 300),
    experts=st.integers(1, 9),
    gated=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    data=st.data(),
)
def test_neighbours_multiplied_together_equal_plain(tokens, experts, gated, dtype, data):
    top_k = data.draw(st.integers(1, min(8, experts)))
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=experts, max_size=experts)))
    weights = make(experts, 24, 40, dtype, gated)
    batched = BatchedLayout(weights, gated)
    # Alone costs so much that neighbours are joined wherever they may be.
    choice = layout_timing.Choice(
        (layout_timing.Tier(math.inf, batched),),
        Cost((1, 512), (1e6, 1e9)),
        batched,
        Cost((1, 512), (1.0, 1.1)),
    )
    x, router = torch.randn(tokens, 24).to(dtype), torch.randn(experts, 24) / 5
    packed = PackedExperts(weights, gated, choice)
    assert_as_plain(x, router, weights, packed, gated=gated, top_k=top_k, expert_mask=mask)


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(0, 150),
    hidden=st.integers(1, 40),
    width=st.integers(1, 40),
    experts=st.integers(1, 9),
    gated=st.booleans(),
    data=st.data(),
)
def test_packed_equals_plain_on_any_shape(tokens, hidden, width, experts, gated, data):
    top_k = data.draw(st.integers(1, min(8, experts)))
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=experts, max_size=experts)))
    weights = make(experts, hidden, width, gated=gated)
    packed = pack_experts(*weights, gated=gated, compute_dtype=torch.float32)
    x, router = torch.randn(tokens, hidden), torch.randn(experts, hidden) / hidden**0.5
    assert_as_plain(x, router, weights, packed, gated=gated, top_k=top_k, expert_mask=mask)


@pytest.mark.parametrize("tokens", [1, 32, 33, 1000])
def test_all_rows_on_one_expert(tokens):
    weights = make(4, 24, 40)
    router = torch.zeros(4, 24)
    router[2] = 5.0
    packed = pack_experts(*weights, compute_dtype=torch.float32)
    assert_as_plain(torch.rand(tokens, 24) + 0.1, router, weights, packed)


def test_rows_that_only_fill_up_are_not_touched_by_a_nan():
    weights = make(2, 16, 24)
    packed = pack_experts(*weights, compute_dtype=torch.float32)
    x = torch.randn(150, 16)
    # 67 and 83 rows are filled up, with copies of row 0.
    routing = Routing(torch.ones(150, 1), (torch.arange(150) >= 67).long()[:, None])
    clean, _ = moe_ffn(x, routing, packed)
    x[0] = float("nan")
    y, _ = moe_ffn(x, routing, packed)
    assert y[0].isnan().all()
    torch.testing.assert_close(y[1:], clean[1:])


class FakeLayout:
    """A layout whose products take as long as a clock of our own says."""

    dtype = torch.float32
    num_bytes = 1

    def __init__(self, name, clock, seconds):
        self.name, self._clock, self._seconds = name, clock, seconds

    def expert(self, rows, expert, activation):
        self._clock.now += self._seconds(rows.shape[0])


class Clock:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


def tiers(monkeypatch, few, many):
    clock = Clock()
    monkeypatch.setattr(layout_timing, "time", clock)
    monkeypatch.setattr(layout_timing, "_remembered", {})
    monkeypatch.setattr(layout_timing, "_memory", None)
    layouts = [FakeLayout("few", clock, few), FakeLayout("many", clock, many)]
    found = layout_timing.choose(layouts, 4, 8, 16)
    return [(tier.max_rows, tier.layout.name) for tier in found.tiers]


def test_the_faster_layout_is_taken_for_each_number_of_rows(monkeypatch):
    assert tiers(monkeypatch, lambda rows: 2.0 * rows, lambda rows: 10.0 + rows) == [
        (8, "few"),
        (math.inf, "many"),
    ]


def test_one_disturbed_timing_decides_nothing(monkeypatch):
    few = dict.fromkeys((16, 32, 64, 128, 512), 20.0) | {1: 5.0, 2: 5.0, 4: 11.5, 8: 5.0}
    assert tiers(monkeypatch, few.get, lambda rows: 10.0) == [(8, "few"), (math.inf, "many")]


def test_another_layout_must_pay_over_all_rows(monkeypatch):
    assert tiers(monkeypatch, lambda rows: 97.0 if rows < 32 else 200.0, lambda rows: 100.0) == [
        (math.inf, "many")
    ]


def test_a_copy_must_be_clearly_faster_than_none(monkeypatch):
    monkeypatch.setattr(FakeLayout, "num_bytes", property(lambda self: int(self.name == "many")))
    assert tiers(monkeypatch, lambda rows: 105.0, lambda rows: 100.0) == [(math.inf, "few")]
    assert tiers(monkeypatch, lambda rows: 115.0, lambda rows: 100.0) == [(math.inf, "many")]


def test_a_shape_is_timed_once(monkeypatch):
    calls = []

    def time_once(layouts, num_experts, hidden):
        calls.append(num_experts)
        return {layout.name: [1.0] * len(layout_timing._ROWS) for layout in layouts}

    monkeypatch.setattr(layout_timing, "_remembered", {})
    monkeypatch.setattr(layout_timing, "_memory", None)
    monkeypatch.setattr(layout_timing, "_time", time_once)
    layouts = [FakeLayout("a", None, None), FakeLayout("b", None, None)]
    first = layout_timing.choose(layouts, 40, 8, 16)
    assert layout_timing.choose(layouts, 40, 8, 16) == first
    assert calls == [16]
    layout_timing.choose(layouts, 3, 8, 16)
    assert calls == [16, 3]


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_packing_without_copies_takes_no_memory(dtype):
    weights = make(4, 64, 48, dtype)
    packed = pack_experts(*weights, copies=False)
    assert packed.num_bytes == 0
    router = torch.randn(4, 64)
    for tokens in (1, 9, 70):
        assert_as_plain(torch.randn(tokens, 64).to(dtype), router, weights, packed, top_k=2)


def test_without_copies_a_shape_is_timed_once_for_any_number_of_experts(monkeypatch):
    timed = []
    monkeypatch.setattr(layout_timing, "_remembered", {})
    monkeypatch.setattr(layout_timing, "_time", lambda candidates, *_: timed.append(1) or even(candidates))
    for experts in (1, 2, 5):
        pack_experts(*make(experts, 32, 16), copies=False)
    assert len(timed) == 1
    pack_experts(*make(2, 32, 24), copies=False)
    assert len(timed) == 2


class Kept(dict):
    """A `Memory` of JSON text, as a file would be."""

    def recall(self, key):
        return json.loads(self[key]) if key in self else None

    def keep(self, key, value):
        assert self.is_alone
        self[key] = json.dumps(value)

    @contextmanager
    def alone(self):
        self.is_alone = True
        yield
        self.is_alone = False


@pytest.fixture
def memory():
    kept = Kept()
    layout_timing.remember_in(kept)
    yield kept
    layout_timing.remember_in(None)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_another_process_chooses_the_same_layouts(dtype, memory, monkeypatch):
    weights = make(5, 64, 48, dtype)
    first = pack_experts(*weights)
    layout_timing.remember_in(memory)  # as another process: what this one remembers is forgotten
    monkeypatch.setattr(layout_timing, "_measure", lambda *_: pytest.fail("it measured again"))
    second = pack_experts(*weights)
    assert second.describe() == first.describe()
    assert (second.choice.alone, second.choice.together) == (first.choice.alone, first.choice.together)
    router, rows = torch.randn(5, 64), torch.randn(70, 64).to(dtype)
    outputs = [moe_ffn(rows, router, packed, top_k=2)[0] for packed in (first, second)]
    assert torch.equal(*outputs)


@pytest.mark.parametrize(
    "damage", ['"names"', "[]", '{"names": ["none"], "alone": [1], "together": null}', "null"]
)
def test_a_measurement_that_cannot_be_used_is_made_again(memory, damage):
    weights = make(3, 32, 16, torch.float32)
    pack_experts(*weights)
    (key,) = memory
    memory[key] = damage
    layout_timing.remember_in(memory)
    pack_experts(*weights)
    assert json.loads(memory[key])["names"]


def even(candidates):
    return {layout.name: [1.0] * len(layout_timing._ROWS) for layout in candidates}


def test_interruptions_do_not_count(monkeypatch):
    interrupted = iter(itertools.cycle([True, False, False, False]))
    few = [(8, "few"), (math.inf, "many")]
    assert (
        tiers(monkeypatch, lambda rows: 2.0 * rows, lambda rows: 10.0 + rows + 900 * next(interrupted)) == few
    )


def test_tiers_decide_by_the_rows_of_each_expert():
    weights = make(2, 8, 12, torch.bfloat16)
    packed = pack_experts(*weights, compute_dtype=torch.float32)
    few, many = PlainLayout(weights, False), OneDnnLayout(weights, False, torch.float32)
    both = (layout_timing.Tier(2, few), layout_timing.Tier(math.inf, many))
    mixed = type(packed)(weights, False, layout_timing.Choice(both, COST, None, None))
    assert [mixed.layout_for(rows) for rows in (1, 2, 3, 1000)] == [few, few, many, many]
    assert mixed.describe() == "plain bfloat16 up to 2 rows an expert, then packed float32"
    assert mixed.num_bytes == 4 * (weights.w1.numel() + weights.w2.numel())
    routing = Routing(torch.ones(6, 1), torch.tensor([[0], [1], [1], [1], [1], [0]]))
    assert_as_plain(torch.randn(6, 8).bfloat16(), routing, weights, mixed)


def test_float32_stays_float32_by_measurement():
    packed = pack_experts(*make(3, 16, 24))
    assert {tier.layout.dtype for tier in packed.choice.tiers} == {torch.float32}


def test_gradients_and_dropout_take_the_plain_weights():
    with torch.inference_mode(False):
        weights = ExpertWeights(*(tensor.clone() for tensor in make(3, 16, 24)))
        packed = pack_experts(*weights, compute_dtype=torch.float32)
        router, grads = torch.randn(3, 16), []
        for experts in ((packed,), weights):
            x = torch.ones(5, 16, requires_grad=True)
            moe_ffn(x, router, *experts)[0].square().sum().backward()
            grads.append(x.grad)
        assert grads[0].abs().sum() > 0
        torch.testing.assert_close(*grads)
        assert not torch.equal(
            *(moe_ffn(torch.ones(5, 16), router, packed, dropout=p)[0] for p in (0.0, 0.9))
        )


def test_a_cache_packs_again_after_a_change_and_only_then():
    with torch.inference_mode(False):
        weights = ExpertWeights(*(tensor.clone() for tensor in make(3, 16, 24)))
        cache = PackedCache()
        first = cache.get(weights, gated=False)
        assert cache.get(weights, gated=False) is first
        weights.w2.mul_(2)
        second = cache.get(weights, gated=False)
        assert second is not first
        x, router = torch.randn(4, 16), torch.randn(3, 16)
        torch.testing.assert_close(moe_ffn(x, router, second)[0], moe_ffn(x, router, *weights)[0])
        cache.clear()
        assert cache.get(weights, gated=False) is not second
        for empty in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
            assert empty._packed is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w2": torch.zeros(3, 16, 23)}, r"w2 must be \[3, 16, 24\]"),
        ({"w1": torch.zeros(24, 16)}, r"w1 must be \[E, I, H\]"),
        ({"w1": torch.zeros(0, 24, 16)}, "at least one expert"),
        ({"w1": torch.zeros(3, 24, 16, device="meta")}, "is on cpu but the others are on meta"),
        ({"compute_dtype": torch.float64}, "oneDNN does not multiply torch.float64"),
        ({"gated": True}, "w2 must be .* to fit gated w1"),
    ],
)
def test_experts_that_cannot_be_packed_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        pack_experts(**{**make(3, 16, 24)._asdict(), **change})


def test_experts_on_another_device_are_refused():
    weights = ExpertWeights(*(tensor.to("meta") for tensor in make(3, 16, 24)))
    with pytest.raises(ValueError, match="packed for a CPU alone, these are on meta"):
        pack_experts(*weights)


def test_calls_that_do_not_fit_the_packing_are_refused():
    weights = make(3, 16, 24)
    packed, x, router = pack_experts(*weights), torch.zeros(2, 16), torch.zeros(3, 16)
    with pytest.raises(ValueError, match="packed with gated=False"):
        moe_ffn(x, router, packed, gated=True)
    with pytest.raises(ValueError, match="hold b1, w2 and b2 already"):
        moe_ffn(x, router, packed, weights.b1)
    with pytest.raises(ValueError, match="w2 is missing"):
        moe_ffn(x, router, weights.w1)
    with pytest.raises(ValueError, match=r"x is torch\.bfloat16"):
        moe_ffn(x.bfloat16(), router, packed)
