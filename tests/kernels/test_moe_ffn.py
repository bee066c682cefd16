"""The paths of `moe_ffn` against a per-token loop in float64, and its refusal of bad arguments."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fewshard_kernels import MoeOptions, explain, force_path, moe_ffn, route_groups
from fewshard_kernels.moe_ffn.routing import route

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


def make(
    tokens: int, hidden: int, width: int, experts: int, dtype: torch.dtype, bias: bool = True
) -> dict[str, Tensor | None]:
    torch.manual_seed(tokens + 31 * hidden + experts)
    return {
        "x": torch.randn(tokens, hidden, dtype=dtype),
        "router": torch.randn(experts, hidden) / hidden**0.5,
        "w1": (torch.randn(experts, width, hidden) / hidden**0.5).to(dtype),
        "b1": (torch.randn(experts, width) / 10).to(dtype) if bias else None,
        "w2": (torch.randn(experts, hidden, width) / width**0.5).to(dtype),
        "b2": (torch.randn(experts, hidden) / 10).to(dtype) if bias else None,
    }


def token_loop(
    args: dict[str, Tensor | None], top_k: int, activation: str, normalize: bool
) -> tuple[Tensor, list[int]]:
    """The formula, one token at a time, in float64."""
    a = {name: None if tensor is None else tensor.double() for name, tensor in args.items()}
    rows = [0] * a["w1"].shape[0]
    out = torch.zeros_like(a["x"])
    for t, token in enumerate(a["x"]):
        # The router is fp32 by definition: rounding there decides ties, so it is shared with the op.
        probabilities = torch.softmax(args["x"][t].float() @ args["router"].float().T, -1).double()
        chosen = probabilities.topk(top_k)
        total = chosen.values.sum() if normalize else 1.0
        for weight, expert in zip(chosen.values, chosen.indices.tolist(), strict=True):
            rows[expert] += 1
            hidden = a["w1"][expert] @ token + (0 if a["b1"] is None else a["b1"][expert])
            hidden = ACTIVATIONS[activation](hidden)
            out[t] += (
                weight / total * (a["w2"][expert] @ hidden + (0 if a["b2"] is None else a["b2"][expert]))
            )
    return out, rows


@pytest.mark.parametrize("path", ["reference", "cpu"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(
    ("tokens", "hidden", "width", "experts", "top_k", "normalize", "bias", "activation"),
    [
        (1, 100, 60, 8, 1, False, True, "gelu"),
        (7, 64, 96, 4, 2, True, True, "relu"),
        (33, 100, 600, 5, 5, False, False, "silu"),
        (40, 32, 48, 64, 1, False, True, "gelu_pytorch_tanh"),
    ],
)
def test_paths_follow_the_formula(
    path, dtype, tokens, hidden, width, experts, top_k, normalize, bias, activation
):
    args = make(tokens, hidden, width, experts, dtype, bias)
    expected, rows = token_loop(args, top_k, activation, normalize)
    with force_path(path):
        y, stats = moe_ffn(**args, top_k=top_k, activation=activation, normalize=normalize)
    assert y.dtype == dtype
    scale = expected.abs().max()
    assert (y.double() - expected).abs().max() <= TOLERANCE[dtype] * scale
    assert stats.expert_rows.tolist() == rows
    assert stats.expert_probability.sum().item() == pytest.approx(tokens, rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    tokens=st.integers(0, 50),
    hidden=st.integers(1, 40),
    width=st.integers(1, 40),
    experts=st.integers(1, 9),
    data=st.data(),
)
def test_cpu_path_equals_reference_on_any_shape(tokens, hidden, width, experts, data):
    top_k = data.draw(st.integers(1, experts))
    args = make(tokens, hidden, width, experts, torch.float32)
    results = []
    for path in ("reference", "cpu"):
        with force_path(path):
            results.append(moe_ffn(**args, top_k=top_k))
    (expected, expected_stats), (y, stats) = results
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    assert stats.expert_rows.sum().item() == tokens * top_k
    for name, got, want in zip(stats._fields, stats, expected_stats, strict=True):
        torch.testing.assert_close(got, want, msg=name)


def test_all_rows_on_one_expert_and_gradients_agree():
    grads = []
    for path in ("reference", "cpu"):
        args = make(20, 16, 24, 4, torch.float32)
        args["x"] = args["x"].abs()
        args["router"] = torch.zeros(4, 16)
        args["router"][2] = 5.0
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in args.items()}
        with force_path(path):
            y, stats = moe_ffn(**leaves)
        assert stats.expert_rows.tolist() == [0, 0, 20, 0]
        (y.square().sum() + stats.squared_log_z + stats.expert_probability.square().sum()).backward()
        grads.append({name: leaf.grad for name, leaf in leaves.items()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, msg=name)


def test_nan_stays_with_its_token():
    args = make(9, 16, 24, 4, torch.float32)
    clean, _ = moe_ffn(**args)
    args["x"] = args["x"].clone()
    args["x"][4] = float("nan")
    y, _ = moe_ffn(**args)
    assert y[4].isnan().all()
    others = [t for t in range(9) if t != 4]
    torch.testing.assert_close(y[others], clean[others])


def test_entropy_is_that_of_the_router():
    args = make(6, 16, 24, 4, torch.float32)
    args["router"] = torch.zeros(4, 16)
    _, stats = moe_ffn(**args)
    assert stats.entropy.item() == pytest.approx(6 * torch.log(torch.tensor(4.0)).item(), rel=1e-6)


def test_expert_dropout_drops_and_keeps_the_mean():
    args = make(400, 32, 64, 2, torch.float32)
    torch.manual_seed(0)
    kept, _ = moe_ffn(**args)
    dropped, _ = moe_ffn(**args, dropout=0.5)
    assert not torch.equal(kept, dropped)
    assert (dropped.mean() - kept.mean()).abs() < 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 5)}, "x must be"),
        ({"x": torch.zeros(3, 2, 8)}, r"x must be \[T, H\]"),
        ({"router": torch.zeros(3, 8)}, "router must be"),
        ({"w2": torch.zeros(4, 6, 8)}, "w2 must be"),
        ({"b1": torch.zeros(4, 5)}, "b1 must be"),
        ({"w2": torch.zeros(4, 8, 6, dtype=torch.bfloat16)}, "cast one of them"),
        ({"top_k": 5}, "top_k must be from 1 to the 4"),
        ({"top_k": 0}, "top_k must be"),
        ({"activation": "swish"}, "there are gelu"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    args = make(3, 8, 6, 4, torch.float32)
    with pytest.raises(ValueError, match=message):
        moe_ffn(**{**args, **change})


def test_unknown_path_and_explanation():
    with pytest.raises(ValueError, match="there are reference, cpu"), force_path("magic"):
        pass
    choice = explain(torch.device("cpu"))
    assert choice.path == "cpu"
    assert "expert" in choice.reason


@pytest.mark.parametrize(("top_k", "normalize"), [(1, False), (2, True), (3, False)])
def test_groups_are_routed_as_their_rows_would_be(top_k, normalize):
    torch.manual_seed(0)
    groups, router, sizes = torch.randn(5, 12), torch.randn(4, 12), torch.tensor([3, 1, 7, 2, 5])
    routing, stats = route_groups(groups, sizes, router, top_k=top_k, normalize=normalize)
    options = MoeOptions(top_k=top_k, normalize=normalize)
    weights, experts, expected = route(groups.repeat_interleave(sizes, dim=0), router, 4, options)
    assert torch.equal(routing.experts, experts)
    torch.testing.assert_close(routing.weights, weights)
    for ours, theirs in zip(stats, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
