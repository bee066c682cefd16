"""The Triton kernels against the reference: every branch, at sizes an interpreter can bear.

On a machine with a GPU these run compiled. Elsewhere they need TRITON_INTERPRET=1 before triton is imported,
so `test_triton_interpreter.py` runs this file in a process of its own, and here it is skipped.
"""

import os
from typing import Any

import pytest
import torch
from torch import Tensor

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETING else "cuda")
pytest.importorskip("triton", reason="triton is not installed")
if not INTERPRETING and not torch.cuda.is_available():
    pytest.skip("no GPU here; test_triton_interpreter.py runs these interpreted", allow_module_level=True)

from fewshard_kernels import LayerNormWeights, Routing, force_path, moe_ffn  # noqa: E402
from fewshard_kernels.moe_ffn.options import ExpertWeights, MoeOptions  # noqa: E402
from fewshard_kernels.moe_ffn.reference import moe_ffn_reference  # noqa: E402
from fewshard_kernels.moe_ffn.routing import route  # noqa: E402
from fewshard_kernels.moe_ffn.triton import moe_ffn_triton, supports  # noqa: E402
from fewshard_kernels.moe_ffn.triton.route import Routed, max_tiles, route_rows  # noqa: E402

# Largest error as a share of the largest value. The interpreter cuts bf16 off where a GPU rounds it.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def make(
    tokens: int,
    hidden: int,
    width: int,
    experts: int,
    dtype: torch.dtype = torch.float32,
    gated: bool = False,
    bias: bool = True,
) -> tuple[Tensor, Tensor, ExpertWeights]:
    generator = torch.Generator().manual_seed(tokens + 31 * hidden + experts)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    rows = 2 * width if gated else width
    b1, b2 = random(experts, rows) / 10, random(experts, hidden) / 10
    weights = ExpertWeights(
        (random(experts, rows, hidden) / hidden**0.5).to(DEVICE, dtype),
        b1.to(DEVICE, dtype) if bias else None,
        (random(experts, hidden, width) / width**0.5).to(DEVICE, dtype),
        b2.to(DEVICE, dtype) if bias else None,
    )
    x, router = random(tokens, hidden), random(experts, hidden) / hidden**0.5
    return x.to(DEVICE, dtype), router.to(DEVICE), weights


def check(x: Tensor, router: Tensor | Routing, weights: ExpertWeights, options: MoeOptions) -> None:
    """The path equals the reference, within the dtype's tolerance; counts equal it exactly."""
    y, stats = moe_ffn_triton(x, router, weights, options)
    expected, expected_stats = moe_ffn_reference(x, router, weights, options)
    assert y.dtype == x.dtype
    assert y.shape == expected.shape
    error = (y.double() - expected.double()).abs().max().item()
    assert error <= TOLERANCE[x.dtype] * expected.double().abs().max().item()
    for name, got, want in zip(stats._fields, stats, expected_stats, strict=True):
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5, equal_nan=True, msg=name)
    assert torch.equal(stats.expert_rows, expected_stats.expert_rows)


# tokens, hidden, width, experts, options. Above 64 tokens the rows are grouped by a second kernel.
CASES: dict[str, tuple[int, int, int, int, dict[str, Any]]] = {
    "one token": (1, 32, 48, 4, {}),
    "more experts than rows": (3, 32, 16, 40, {"activation": "relu"}),
    "odd sizes, masked loads": (7, 100, 60, 4, {"top_k": 2, "normalize": True, "activation": "silu"}),
    "whole blocks, unmasked loads": (17, 128, 192, 2, {"activation": "gelu_pytorch_tanh"}),
    "every expert": (5, 20, 12, 3, {"top_k": 3, "scoring": "topk_softmax"}),
    "sigmoid": (20, 32, 24, 8, {"top_k": 4, "scoring": "sigmoid"}),
    "sigmoid, normalized": (9, 32, 24, 8, {"top_k": 2, "scoring": "sigmoid", "normalize": True}),
    "gated": (9, 40, 36, 4, {"gated": True, "activation": "silu"}),
    "gated, top-2, no bias": (11, 64, 80, 4, {"gated": True, "top_k": 2, "bias": False}),
    "second kernel": (70, 32, 48, 4, {}),
    "second kernel, top-2": (131, 24, 40, 6, {"top_k": 2, "bias": False}),
    "second kernel, gated, top-4": (65, 16, 20, 5, {"top_k": 4, "gated": True, "scoring": "topk_softmax"}),
    "large row tiles": (300, 16, 24, 2, {}),
}


def _options(case: dict[str, Any]) -> MoeOptions:
    return MoeOptions(**{name: value for name, value in case.items() if name != "bias"})


@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(name: str) -> None:
    *sizes, case = CASES[name]
    x, router, weights = make(*sizes, gated=case.get("gated", False), bias=case.get("bias", True))
    check(x, router, weights, _options(case))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "name", ["odd sizes, masked loads", "gated", "second kernel, top-2", "large row tiles"]
)
def test_equals_the_reference_in_16_bits(name: str, dtype: torch.dtype) -> None:
    *sizes, case = CASES[name]
    x, router, weights = make(*sizes, dtype, case.get("gated", False), case.get("bias", True))
    check(x, router, weights, _options(case))


@pytest.mark.parametrize(("tokens", "top_k"), [(6, 1), (70, 2)])
@pytest.mark.parametrize("parts", ["residual", "norm", "norm without bias"])
def test_residual_and_norm(parts: str, tokens: int, top_k: int) -> None:
    x, router, weights = make(tokens, 40, 24, 4)
    # Every other column of a wider tensor: the rows of x and of the residual are not contiguous.
    x = torch.stack([x, x], dim=-1).flatten(1)[:, ::2]
    residual = torch.randn(tokens, 80, generator=torch.Generator().manual_seed(1)).to(DEVICE)[:, :40]
    norm = LayerNormWeights(
        torch.linspace(0.5, 2, 40, device=DEVICE),
        torch.linspace(-1, 1, 40, device=DEVICE) if parts == "norm" else None,
        1e-5,
    )
    options = MoeOptions(top_k=top_k, residual=residual, norm=None if parts == "residual" else norm)
    check(x, router, weights, options)


@pytest.mark.parametrize(("tokens", "top_k"), [(6, 1), (20, 3), (70, 2)])
@pytest.mark.parametrize("present", [(True, False, True, False), (False,) * 4])
def test_masked_experts_are_never_read(tokens: int, top_k: int, present: tuple[bool, ...]) -> None:
    x, router, weights = make(tokens, 24, 20, 4)
    mask = torch.tensor(present, device=DEVICE)
    options = MoeOptions(top_k=top_k, expert_mask=mask)
    expected, expected_stats = moe_ffn_reference(x, router, weights, options)
    for tensor in weights:
        tensor[~mask] = float("nan")
    y, stats = moe_ffn_triton(x, router, weights, options)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(stats.expert_rows, expected_stats.expert_rows)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("tokens", [5, 70])
def test_given_routing(tokens: int, dtype: torch.dtype) -> None:
    x, _, weights = make(tokens, 24, 20, 6)
    generator = torch.Generator().manual_seed(0)
    # One token names an expert twice, which a router never does: its rows must not fall on one another.
    experts = torch.randint(0, 6, (tokens, 3), generator=generator).to(DEVICE, dtype)
    experts[2] = 4
    given = torch.rand(tokens, 3, generator=generator).to(DEVICE, torch.bfloat16)
    check(x, Routing(given, experts), weights, MoeOptions(top_k=3))


@pytest.mark.parametrize("tokens", [8, 70])
def test_given_experts_out_of_range_contribute_nothing(tokens: int) -> None:
    x, _, weights = make(tokens, 24, 20, 5)
    experts = torch.arange(tokens, device=DEVICE)[:, None] % 5
    ones = torch.ones(tokens, 1, device=DEVICE)
    expected, _ = moe_ffn_reference(x, Routing(ones, experts), weights, MoeOptions())
    wrong = {0: -1, 3: 5, 6: 2**40}
    for token, expert in wrong.items():
        experts[token] = expert
        expected[token] = 0
    y, stats = moe_ffn_triton(x, Routing(ones, experts), weights, MoeOptions())
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    assert stats.expert_rows.sum().item() == tokens - len(wrong)


@pytest.mark.parametrize("tokens", [9, 70])
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_nan_stays_with_its_token(tokens: int, top_k: int, activation: str) -> None:
    x, router, weights = make(tokens, 16, 24, 4)
    options = MoeOptions(top_k=top_k, activation=activation)
    x[4] = float("nan")
    y, stats = moe_ffn_triton(x, router, weights, options)
    expected, expected_stats = moe_ffn_reference(x, router, weights, options)
    assert y[4].isnan().all()
    others = torch.arange(tokens, device=DEVICE) != 4
    torch.testing.assert_close(y[others], expected[others], rtol=1e-5, atol=1e-5)
    assert stats.expert_rows.sum().item() == tokens * top_k
    for got, want in zip(stats[1:], expected_stats[1:], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tokens", [12, 100])
def test_all_rows_on_one_expert(tokens: int) -> None:
    x, router, weights = make(tokens, 16, 24, 6)
    x, router = x.abs(), torch.zeros_like(router)
    router[3] = 5.0
    y, stats = moe_ffn_triton(x, router, weights, MoeOptions())
    expected, _ = moe_ffn_reference(x, router, weights, MoeOptions())
    assert stats.expert_rows.tolist() == [0, 0, 0, tokens, 0, 0]
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)


def test_equal_logits_take_the_first_experts() -> None:
    x, router, _ = make(3, 16, 24, 6)
    routed = route_rows(x, torch.zeros_like(router), 6, MoeOptions(top_k=2), 16)
    assert routed.experts.tolist() == [[0, 1]] * 3
    torch.testing.assert_close(routed.weights, torch.full_like(routed.weights, 1 / 6))


@pytest.mark.parametrize("given", [True, False])
def test_empty_batch(given: bool) -> None:
    x, router, weights = make(0, 16, 24, 4)
    routing = Routing(x.new_empty(0, 2), torch.empty(0, 2, dtype=torch.int64, device=DEVICE))
    y, stats = moe_ffn_triton(x, routing if given else router, weights, MoeOptions(top_k=2))
    assert y.shape == (0, 16)
    assert stats.expert_rows.tolist() == [0] * 4
    assert stats.entropy.isnan().item() is given


@pytest.mark.parametrize("tokens", [20, 70])
def test_two_runs_give_the_same_bits(tokens: int) -> None:
    x, router, weights = make(tokens, 32, 40, 4, torch.bfloat16)
    options = MoeOptions(top_k=2, residual=x)
    first, first_stats = moe_ffn_triton(x, router, weights, options)
    second, second_stats = moe_ffn_triton(x, router, weights, options)
    assert torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip(first_stats, second_stats, strict=True))


def test_the_facade_can_be_made_to_take_this_path() -> None:
    x, router, weights = make(9, 16, 24, 4, gated=True)
    with force_path("triton"):
        y, _ = moe_ffn(x, router, *weights, top_k=2, gated=True, residual=x)
    expected, _ = moe_ffn_triton(x, router, weights, MoeOptions(top_k=2, gated=True, residual=x))
    assert torch.equal(y, expected)


def test_inputs_are_left_alone() -> None:
    x, router, weights = make(9, 16, 24, 4)
    before = [t.clone() for t in (x, router, *weights)]
    moe_ffn_triton(x, router, weights, MoeOptions(top_k=2, residual=x))
    assert all(torch.equal(a, b) for a, b in zip(before, (x, router, *weights), strict=True))


# --- routing and grouping, exactly ------------------------------------------------------------------------


@pytest.mark.parametrize("scoring", ["softmax", "topk_softmax", "sigmoid"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("tokens", "top_k"), [(13, 1), (13, 3), (80, 2)])
def test_routing_is_that_of_the_reference(scoring: str, normalize: bool, tokens: int, top_k: int) -> None:
    x, router, _ = make(tokens, 150, 8, 7)
    options = MoeOptions(top_k=top_k, scoring=scoring, normalize=normalize)
    routed = route_rows(x, 3 * router, 7, options, 16)
    weights, experts, stats = route(x, 3 * router, 7, options)
    assert torch.equal(routed.experts.long(), experts)
    torch.testing.assert_close(routed.weights, weights, rtol=1e-5, atol=1e-6)
    for got, want in zip(routed.stats, stats, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scoring", ["softmax", "topk_softmax", "sigmoid"])
def test_weights_of_huge_logits_are_numbers(scoring: str) -> None:
    x, router, _ = make(6, 16, 8, 5)
    options = MoeOptions(top_k=2, scoring=scoring, normalize=True)
    routed = route_rows(1e4 * x, router, 5, options, 16)
    torch.testing.assert_close(routed.weights.sum(1), torch.ones(6, device=DEVICE))
    torch.testing.assert_close(routed.weights, route(1e4 * x, router, 5, options)[0])


def _skewed(kind: str, pairs: tuple[int, int], num_experts: int) -> Tensor:
    generator = torch.Generator().manual_seed(num_experts)
    if kind == "one":
        return torch.full(pairs, num_experts - 1)
    experts = torch.randint(0, num_experts, pairs, generator=generator)
    return experts // 2 * 2 if kind == "gaps" else experts


def _expected_tiles(rows: list[int], block_m: int, num_tiles: int) -> list[list[int]]:
    tiles, offset = [], 0
    for expert, count in enumerate(rows):
        for begin in range(offset, offset + count, block_m):
            tiles.append([expert, begin, min(begin + block_m, offset + count)])
        offset += count
    assert len(tiles) <= num_tiles, "the bound on tiles does not hold"
    return tiles


def _check_groups(routed: Routed, experts: Tensor, here: Tensor, num_experts: int, block_m: int) -> None:
    flat = torch.where(here, experts, num_experts).flatten()
    order, kept = flat.argsort(stable=True), int(here.sum())
    assert torch.equal(routed.row_map[:kept].long(), order[:kept])
    assert torch.equal(routed.experts.long(), torch.where(here, experts, -1))
    rows = torch.bincount(flat, minlength=num_experts + 1)[:num_experts].tolist()
    tiles = routed.tiles.T.tolist()
    expected = _expected_tiles(rows, block_m, len(tiles))
    assert tiles[: len(expected)] == expected
    assert all(expert == -1 for expert, _, _ in tiles[len(expected) :])


@pytest.mark.parametrize("kind", ["uniform", "gaps", "one"])
@pytest.mark.parametrize(
    ("tokens", "num_experts", "top_k", "block_m"),
    [(1, 4, 1, 16), (7, 8, 2, 16), (64, 3, 3, 16), (65, 5, 2, 32), (150, 40, 1, 16), (200, 6, 4, 64)],
)
def test_rows_are_grouped_as_by_a_stable_sort(
    kind: str, tokens: int, num_experts: int, top_k: int, block_m: int
) -> None:
    experts = _skewed(kind, (tokens, top_k), num_experts).to(DEVICE)
    x = torch.zeros(tokens, 16, device=DEVICE)
    routing = Routing(torch.ones(tokens, top_k, device=DEVICE), experts)
    routed = route_rows(x, routing, num_experts, MoeOptions(top_k=top_k), block_m)
    _check_groups(routed, experts, torch.ones_like(experts, dtype=torch.bool), num_experts, block_m)
    assert torch.equal(routed.stats.expert_rows, torch.bincount(experts.flatten(), minlength=num_experts))


@pytest.mark.parametrize("tokens", [30, 90])
def test_absent_experts_take_no_rows(tokens: int) -> None:
    experts = _skewed("uniform", (tokens, 2), 6).to(DEVICE)
    mask = torch.tensor([True, False, True, True, False, True], device=DEVICE)
    x = torch.zeros(tokens, 16, device=DEVICE)
    routing = Routing(torch.ones(tokens, 2, device=DEVICE), experts)
    routed = route_rows(x, routing, 6, MoeOptions(top_k=2, expert_mask=mask), 16)
    _check_groups(routed, experts, mask[experts], 6, 16)
    assert torch.equal(routed.stats.expert_rows, torch.bincount(experts.flatten(), minlength=6))


def test_the_bound_on_tiles_is_reached() -> None:
    for rows, experts, block_m in [(3, 8, 16), (8, 8, 16), (100, 4, 16), (97, 4, 32)]:
        spread = [1] * min(rows, experts - 1)
        spread.append(rows - len(spread))
        assert sum(-(-count // block_m) for count in spread) == max_tiles(rows, experts, block_m)


# --- what it refuses --------------------------------------------------------------------------------------


def test_reasons_against_a_call() -> None:
    x, router, weights = make(3, 16, 24, 4)
    assert supports(x, router, weights, MoeOptions()) is None
    assert "dropout" in str(supports(x, router, weights, MoeOptions(dropout=0.5)))
    assert "at most 16 experts a row" in str(supports(x, router, weights, MoeOptions(top_k=17)))
    across = weights._replace(w1=weights.w1.transpose(1, 2).contiguous().transpose(1, 2))
    assert "contiguous" in str(supports(x, router, across, MoeOptions()))
    needs_gradient = x.clone().requires_grad_()
    assert "backward" in str(supports(needs_gradient, router, weights, MoeOptions()))
    with torch.no_grad():
        assert supports(needs_gradient, router, weights, MoeOptions()) is None
    with pytest.raises(ValueError, match="it has no dropout"):
        moe_ffn_triton(x, router, weights, MoeOptions(dropout=0.5))
