"""The compiled kernels at the sizes they are for; needs a GPU. What only real concurrency shows is here."""

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="triton is not installed")
if not torch.cuda.is_available():
    pytest.skip("torch sees no GPU", allow_module_level=True)

from fewshard_kernels import LayerNormWeights, explain, moe_ffn
from fewshard_kernels.moe_ffn.options import ExpertWeights, MoeOptions, Routing
from fewshard_kernels.moe_ffn.reference import moe_ffn_reference
from fewshard_kernels.moe_ffn.routing import route
from fewshard_kernels.moe_ffn.tiles import LayerShape, from_row
from fewshard_kernels.moe_ffn.triton import moe_ffn_triton
from fewshard_kernels.moe_ffn.triton.route import route_rows

CUDA = torch.device("cuda")
# tokens, hidden, width, experts, options
LAYERS: list[tuple[int, int, int, int, dict[str, Any]]] = [
    (1, 384, 1536, 8, {}),
    (64, 768, 3072, 8, {"top_k": 2, "normalize": True}),
    (200, 384, 1536, 16, {}),
    (1000, 100, 600, 5, {"top_k": 2, "scoring": "sigmoid"}),
    (1024, 768, 3072, 64, {"top_k": 6, "scoring": "topk_softmax"}),
    (4096, 384, 1536, 8, {"top_k": 2}),
    (4097, 768, 3072, 8, {}),
    (3000, 2048, 1408, 64, {"top_k": 6, "gated": True, "activation": "silu"}),
    (40000, 384, 1536, 8, {"activation": "gelu_pytorch_tanh"}),
]


def make(
    tokens: int, hidden: int, width: int, experts: int, dtype: torch.dtype, gated: bool = False
) -> tuple[Tensor, Tensor, ExpertWeights]:
    torch.manual_seed(tokens + hidden)
    rows = 2 * width if gated else width

    def random(*size: int) -> Tensor:
        return torch.randn(size, device=CUDA)

    weights = ExpertWeights(
        (random(experts, rows, hidden) / hidden**0.5).to(dtype),
        (random(experts, rows) / 10).to(dtype),
        (random(experts, hidden, width) / width**0.5).to(dtype),
        (random(experts, hidden) / 10).to(dtype),
    )
    return random(tokens, hidden).to(dtype), random(experts, hidden) / hidden**0.5, weights


def double(weights: ExpertWeights) -> ExpertWeights:
    return ExpertWeights(*(None if t is None else t.double() for t in weights))  # type: ignore[arg-type]


def relative(y: Tensor, exact: Tensor) -> float:
    return ((y.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_as_near_to_float64_as_plain_torch(layer: tuple[Any, ...], dtype: torch.dtype) -> None:
    tokens, hidden, width, experts, case = layer
    if dtype == torch.float32 and tokens > 5000:
        pytest.skip("float64 would take too long; the size is tested in 16 bits")
    x, router, weights = make(tokens, hidden, width, experts, dtype, case.get("gated", False))
    options = MoeOptions(**case)
    y, stats = moe_ffn_triton(x, router, weights, options)
    # The experts the kernel chose, so that two nearly equal logits make no difference here.
    routed = route_rows(x, router, experts, options, 64)
    chosen, exact_experts, exact_stats = route(x, router, experts, options)
    same = (routed.experts.long().sort(1).values == exact_experts.sort(1).values).all(1)
    assert same.float().mean().item() > 0.999
    torch.testing.assert_close(routed.weights[same], chosen[same], rtol=1e-4, atol=1e-5)
    exact = _exact(x, weights, routed.weights, routed.experts, options)
    plain, _ = moe_ffn_reference(x, router, weights, options)
    assert relative(y[same], exact[same]) <= 2 * relative(plain[same], exact[same]) + 1e-7
    assert stats.expert_rows.sum().item() == tokens * options.top_k
    assert (stats.expert_rows - exact_stats.expert_rows).abs().sum().item() <= 2 * (~same).sum().item()
    for got, want in zip(stats[1:], exact_stats[1:], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-3)


def _exact(x: Tensor, weights: ExpertWeights, p: Tensor, experts: Tensor, options: MoeOptions) -> Tensor:
    routing = Routing(p, experts.long())
    return moe_ffn_reference(x.double(), routing, double(weights), options)[0]


@pytest.mark.parametrize("tokens", [48, 1000, 5000])
@pytest.mark.parametrize("top_k", [1, 2])
def test_twenty_runs_give_the_same_bits(tokens: int, top_k: int) -> None:
    x, router, weights = make(tokens, 384, 1536, 8, torch.bfloat16)
    options = MoeOptions(top_k=top_k)
    first, first_stats = moe_ffn_triton(x, router, weights, options)
    for _ in range(19):
        y, stats = moe_ffn_triton(x, router, weights, options)
        assert torch.equal(y, first)
        assert all(torch.equal(a, b) for a, b in zip(stats, first_stats, strict=True))


@pytest.mark.parametrize("tokens", [32, 1000])
@pytest.mark.parametrize("top_k", [1, 2])
def test_a_graph_can_be_replayed_on_other_rows(tokens: int, top_k: int) -> None:
    x, router, weights = make(tokens, 384, 1536, 8, torch.bfloat16)
    norm = LayerNormWeights(torch.ones(384, device=CUDA), torch.zeros(384, device=CUDA), 1e-12)
    options = MoeOptions(top_k=top_k, residual=x, norm=norm)
    moe_ffn_triton(x, router, weights, options)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, stats = moe_ffn_triton(x, router, weights, options)
    rows = [torch.randn_like(x), x.flip(0).contiguous(), x.clone()]
    for other in rows:
        # A replay on NaN leaves NaN in every buffer of the graph; what is then not written shows.
        x.fill_(float("nan"))
        graph.replay()
        y.fill_(float("nan"))
        x.copy_(other)
        graph.replay()
        expected, expected_stats = moe_ffn_triton(x, router, weights, options)
        assert torch.equal(y, expected)
        assert torch.equal(stats.expert_rows, expected_stats.expert_rows)


def test_nothing_waits_for_the_device() -> None:
    x, router, weights = make(1000, 384, 1536, 8, torch.bfloat16)
    moe_ffn(x, router, *weights, top_k=2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        moe_ffn(x, router, *weights, top_k=2)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_nan_stays_with_its_token() -> None:
    x, router, weights = make(2000, 384, 1536, 8, torch.bfloat16)
    clean, _ = moe_ffn_triton(x, router, weights, MoeOptions(top_k=2))
    poisoned = x.clone()
    poisoned[77] = float("nan")
    y, _ = moe_ffn_triton(poisoned, router, weights, MoeOptions(top_k=2))
    assert y[77].isnan().all()
    others = torch.arange(2000, device=CUDA) != 77
    assert torch.equal(y[others], clean[others])


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    x, router, weights = make(5000, 384, 1536, 8, torch.bfloat16)
    together, _ = moe_ffn_triton(x, router, weights, MoeOptions(top_k=2))
    alone, _ = moe_ffn_triton(x[:40], router, weights, MoeOptions(top_k=2))
    assert (together[:40].float() - alone.float()).abs().max().item() <= 2e-2


@pytest.mark.parametrize("tokens", [100, 6000])
def test_all_rows_on_one_expert(tokens: int) -> None:
    x, router, weights = make(tokens, 384, 1536, 8, torch.bfloat16)
    x, router = x.abs(), torch.zeros_like(router)
    router[6] = 1.0
    y, stats = moe_ffn_triton(x, router, weights, MoeOptions())
    plain, _ = moe_ffn_reference(x, router, weights, MoeOptions())
    assert stats.expert_rows.tolist() == [0] * 6 + [tokens, 0]
    assert relative(y, plain.double()) < 1e-2


def test_weights_beyond_32_bit_offsets() -> None:
    experts, hidden, width = 70, 4096, 8192
    if torch.cuda.mem_get_info()[0] < 14 * 2**30:
        pytest.skip("needs 14 GiB of free GPU memory")
    w1 = torch.zeros(experts, width, hidden, dtype=torch.bfloat16, device=CUDA)
    w2 = torch.zeros(experts, hidden, width, dtype=torch.bfloat16, device=CUDA)
    assert w1.numel() > 2**31
    w1[-1], w2[-1] = torch.randn_like(w1[-1]) / 64, torch.randn_like(w2[-1]) / 90
    weights = ExpertWeights(w1, None, w2, None)
    x = torch.randn(40, hidden, device=CUDA, dtype=torch.bfloat16).abs()
    router = torch.zeros(experts, hidden, device=CUDA)
    router[-1] = 1.0
    y, _ = moe_ffn_triton(x, router, weights, MoeOptions())
    plain, _ = moe_ffn_reference(x, router, weights, MoeOptions())
    assert relative(y, plain.double()) < 1e-2


def test_the_facade_takes_this_path_on_a_gpu() -> None:
    assert explain(CUDA).path == "triton"
    x, router, weights = make(100, 384, 1536, 8, torch.bfloat16)
    y, _ = moe_ffn(x, router, *weights)
    assert torch.equal(y, moe_ffn_triton(x, router, weights, MoeOptions())[0])
    x.requires_grad_()
    trained, _ = moe_ffn(x, router, *weights)
    assert trained.requires_grad, "where a gradient is asked for, plain torch runs"


def test_tuning_returns_rows_of_the_table() -> None:
    from fewshard_kernels.moe_ffn.triton import tune

    shape = LayerShape(torch.cuda.get_device_capability(), torch.bfloat16, 128, 256, 2, 1, False)
    with pytest.MonkeyPatch.context() as patch:
        few = [tune.GemmTile(64, 64, 8, 4, 3), tune.GemmTile(32, 32, 8, 4, 2)]
        patch.setattr(tune, "candidates", lambda *_, **__: iter(few))
        patch.setattr(tune, "_COLD_BYTES", 2**20)
        (row,) = tune.tune(shape, [16], CUDA)
    assert row.pop("milliseconds") > 0
    key, tiles = from_row(row)
    assert key == (shape, 16)
    assert {tiles.first, tiles.second} <= set(few)
