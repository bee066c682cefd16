"""Every option of `moe_ffn`, on every path of a CPU, against a float64 loop over tokens and experts."""

import importlib
import itertools
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from fewshard_kernels import LayerNormWeights, Routing, explain, force_path, moe_ffn, pack_experts

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
PATHS = ("reference", "cpu", "packed")
ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_pytorch_tanh": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: x.clamp(min=0),
    "silu": lambda x: x / (1 + torch.exp(-x)),
}


def make(
    tokens: int = 7,
    hidden: int = 16,
    width: int = 24,
    experts: int = 5,
    dtype: torch.dtype = torch.float32,
    gated: bool = False,
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(tokens + 31 * hidden + experts)
    rows = 2 * width if gated else width

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator) * scale).to(dtype)

    return {
        "x": random(tokens, hidden),
        "router": random(experts, hidden, scale=2 * hidden**-0.5).float(),
        "w1": random(experts, rows, hidden, scale=hidden**-0.5),
        "b1": random(experts, rows, scale=0.1),
        "w2": random(experts, hidden, width, scale=width**-0.5),
        "b2": random(experts, hidden, scale=0.1),
    }


def run(path: str, args: dict, **options):
    if path == "packed":
        experts = {name: args[name] for name in ("w1", "b1", "w2", "b2")}
        packed = pack_experts(**experts, gated=options.get("gated", False))
        with torch.inference_mode():
            return moe_ffn(args["x"], args["router"], packed, **options)
    with force_path(path):
        return moe_ffn(**args, **options)


def choose(args: dict, top_k: int, scoring: str, normalize: bool) -> tuple[Tensor, Tensor]:
    """Weights float64 and experts [T, top_k]; the logits in fp32, since rounding decides ties."""
    logits = (args["x"].float() @ args["router"].float().T).double()
    experts = logits.topk(top_k).indices
    if scoring == "topk_softmax":
        weights = logits.gather(1, experts).softmax(-1)
    else:
        weights = (logits.softmax(-1) if scoring == "softmax" else logits.sigmoid()).gather(1, experts)
    return weights / weights.sum(-1, keepdim=True) if normalize else weights, experts


def off_ties(args: dict, top_k: int) -> dict:
    """`args` without the tokens whose choice rounding may decide.

    Added in any order, H products err by at most H * 2**-24 times the sum of their magnitudes (Higham 2002,
    equation 3.5), so another BLAS may choose otherwise where two logits are nearer than twice that.
    """
    x, router = args["x"].double(), args["router"].double().T
    largest = (x @ router).sort(dim=1, descending=True).values
    error = x.shape[1] * 2**-24 * (x.abs() @ router.abs()).max(dim=1).values
    return args | {"x": args["x"][largest[:, top_k - 1] - largest[:, top_k] > 2 * error]}


def token_loop(
    args: dict, weights: Tensor, experts: Tensor, *, activation="gelu", gated=False, mask=None
) -> Tensor:
    a = {name: None if args[name] is None else args[name].double() for name in ("x", "w1", "b1", "w2", "b2")}
    act, out = ACTIVATIONS[activation], torch.zeros_like(a["x"])
    for token, choice in itertools.product(*map(range, experts.shape)):
        expert = int(experts[token, choice])
        if mask is not None and not mask[expert]:
            continue
        projected = a["w1"][expert] @ a["x"][token] + (0 if a["b1"] is None else a["b1"][expert])
        hidden = (
            act(projected[: len(projected) // 2]) * projected[len(projected) // 2 :]
            if gated
            else act(projected)
        )
        result = a["w2"][expert] @ hidden + (0 if a["b2"] is None else a["b2"][expert])
        out[token] += weights[token, choice].double() * result
    return out


def assert_near(y: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[y.dtype]
    torch.testing.assert_close(
        y.double(), expected, rtol=tolerance, atol=tolerance * expected.abs().max().item()
    )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_experts(path, dtype, gated, activation):
    args = make(dtype=dtype, gated=gated)
    y, _ = run(path, args, top_k=2, gated=gated, activation=activation)
    weights, experts = choose(args, 2, "softmax", False)
    assert y.dtype == dtype
    assert_near(y, token_loop(args, weights, experts, gated=gated, activation=activation))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("scoring", ["softmax", "topk_softmax", "sigmoid"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("top_k", [1, 3, 8])
def test_scorings(path, scoring, normalize, top_k):
    args = make(experts=9)
    y, stats = run(path, args, top_k=top_k, scoring=scoring, normalize=normalize)
    weights, experts = choose(args, top_k, scoring, normalize)
    assert_near(y, token_loop(args, weights, experts))
    assert stats.expert_rows.tolist() == torch.bincount(experts.flatten(), minlength=9).tolist()
    assert stats.expert_rows.sum().item() == 7 * top_k


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("tokens", "hidden", "width", "experts", "top_k"),
    [
        (1, 100, 60, 8, 1),
        (7, 600, 100, 3, 2),
        (1000, 100, 36, 5, 1),
        (1000, 20, 36, 64, 6),
        (3, 600, 8, 64, 8),
    ],
)
def test_odd_sizes(path, tokens, hidden, width, experts, top_k):
    args = off_ties(make(tokens, hidden, width, experts), top_k)
    y, stats = run(path, args, top_k=top_k)
    assert_near(y, token_loop(args, *choose(args, top_k, "softmax", False)))
    assert len(args["x"]) >= tokens - 1
    assert stats.expert_rows.sum().item() == len(args["x"]) * top_k


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("biases", [("b1",), ("b2",), ("b1", "b2")])
def test_without_biases(path, biases):
    args = make() | dict.fromkeys(biases)
    y, _ = run(path, args)
    assert_near(y, token_loop(args, *choose(args, 1, "softmax", False)))


@pytest.mark.parametrize("path", PATHS)
def test_masked_experts_are_not_read_and_are_counted(path):
    args, mask = make(tokens=40), torch.tensor([True, False, True, True, False])
    for name in ("w1", "b1", "w2", "b2"):
        args[name][~mask] = float("nan")
    y, stats = run(path, args, top_k=2, expert_mask=mask)
    weights, experts = choose(args, 2, "softmax", False)
    assert_near(y, token_loop(args, weights, experts, mask=mask))
    assert stats.expert_rows.tolist() == torch.bincount(experts.flatten(), minlength=5).tolist()
    nothing, _ = run(path, args, top_k=2, expert_mask=torch.zeros(5, dtype=torch.bool))
    assert (nothing == 0).all()


@pytest.mark.parametrize("path", PATHS)
def test_shards_add_up_to_the_whole(path):
    args, mask = make(tokens=40), torch.tensor([True, False, True, True, False])
    whole, _ = run(path, args, top_k=3)
    halves = [run(path, args, top_k=3, expert_mask=part)[0] for part in (mask, ~mask)]
    assert all(half.abs().sum() > 0 for half in halves)
    torch.testing.assert_close(halves[0] + halves[1], whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("bias", [True, False])
def test_residual_and_norm(path, dtype, bias):
    args = make(tokens=9, dtype=dtype)
    residual, scale, shift = torch.randn(9, 16).to(dtype), torch.randn(16), torch.randn(16)
    weights, experts = choose(args, 2, "softmax", False)
    expected = residual.double() + token_loop(args, weights, experts)
    added, _ = run(path, args, top_k=2, residual=residual)
    assert_near(added, expected)
    norm = LayerNormWeights(scale, shift if bias else None, 1e-2)
    normed, _ = run(path, args, top_k=2, residual=residual, norm=norm)
    assert normed.dtype == dtype
    centred = expected - expected.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-2).sqrt() * scale.double()
    assert_near(normed, expected + shift.double() if bias else expected)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
def test_given_routing(path, index):
    args = make(tokens=6)
    experts = torch.tensor([[0, 3], [3, 3], [1, 4], [4, 0], [3, 1], [0, 1]])
    weights = torch.rand(6, 2).bfloat16()
    y, stats = run(path, args | {"router": Routing(weights, experts.to(index))}, top_k=1)
    assert_near(y, token_loop(args, weights, experts))
    assert stats.expert_rows.tolist() == [3, 3, 0, 4, 2]
    expected = torch.zeros(5).index_add(0, experts.flatten(), weights.float().flatten())
    torch.testing.assert_close(stats.expert_probability, expected)
    assert stats.entropy.isnan()
    assert stats.squared_log_z.isnan()


def test_statistics_follow_their_definition():
    args = make(tokens=11)
    logits = args["x"].double() @ args["router"].double().T
    for scoring, distribution in (
        ("softmax", logits.softmax(-1)),
        ("topk_softmax", logits.softmax(-1)),
        ("sigmoid", logits.sigmoid() / logits.sigmoid().sum(-1, keepdim=True)),
    ):
        _, stats = moe_ffn(**args, top_k=2, scoring=scoring)
        entropy = -(distribution * distribution.log()).sum()
        assert_near(stats.expert_probability, distribution.sum(0))
        assert stats.entropy.item() == pytest.approx(entropy.item(), rel=1e-5)
        assert stats.squared_log_z.item() == pytest.approx(
            logits.logsumexp(-1).square().sum().item(), rel=1e-5
        )


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("path", PATHS)
def test_logits_far_below_zero_still_make_weights(path, scoring):
    """Five equal rows of the router, logits from -960 to -760: two experts with half the weight each.

    Logits are sums of 16 products. A BLAS may add them in any order, and in another one for the fifth row
    than for the first four. With arbitrary numbers equal rows then differ by one ulp, 6.1e-5 from 512 to
    1,024; the weight of one of two is the sigmoid of their difference, so it moves by a quarter of that,
    1.5e-5, which is more than the tolerance of 1e-5. Here x holds quarters below 8 and the router -40: every
    product and every sum is a multiple of 10 below 5,000, which fp32 holds exactly, whatever the order.
    """
    args = make()
    args["router"] = torch.full((5, 16), -40.0)
    args["x"] = (4 * args["x"].abs()).round().clamp(max=28) / 4 + 0.5
    logits = args["x"] @ args["router"].T
    assert torch.equal(logits, logits[:, :1].expand(7, 5))
    assert logits.max() < -500
    y, _ = run(path, args, top_k=2, scoring=scoring, normalize=True)
    assert y.isfinite().all()
    assert_near(y, token_loop(args, torch.full((7, 2), 0.5), logits.topk(2).indices))


@pytest.mark.parametrize("scoring", ["softmax", "sigmoid"])
@pytest.mark.parametrize("path", PATHS)
def test_logits_far_below_zero_that_differ_little_are_told_apart(path, scoring):
    """Logits below -760 that differ by 1/4, which fp32 holds exactly, too: weights 0.562 and 0.438."""
    args = make()
    args["router"] = torch.full((5, 16), -40.0)
    args["router"][:, 0] += torch.tensor([0.0, 0.5, 0.25, 0.75, -1.0])
    args["x"] = (4 * args["x"].abs()).round().clamp(max=28) / 4 + 0.5
    args["x"][:, 0] = 1.0
    y, _ = run(path, args, top_k=2, scoring=scoring, normalize=True)
    weights = torch.tensor([[1.0, 0.0]]).mul(0.25).double().softmax(-1).expand(7, 2)
    assert_near(y, token_loop(args, weights, torch.tensor([[3, 1]]).expand(7, 2)))


@pytest.mark.parametrize("path", PATHS)
def test_a_nan_stays_with_its_token(path):
    args = make(tokens=40)
    options = {
        "top_k": 2,
        "residual": torch.randn(40, 16),
        "norm": LayerNormWeights(torch.ones(16), None, 1e-5),
    }
    clean, _ = run(path, args, **options)
    _, stats_without = run(path, args | {"x": args["x"][1:]}, top_k=2)
    args["x"][0, 3] = float("nan")
    y, stats = run(path, args, **options)
    assert y[0].isnan().all()
    torch.testing.assert_close(y[1:], clean[1:])
    assert stats.expert_rows.sum().item() == 80
    for name in ("expert_probability", "entropy", "squared_log_z"):
        torch.testing.assert_close(getattr(stats, name), getattr(stats_without, name), msg=name)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("top_k", [1, 3])
def test_an_empty_batch(path, top_k):
    args = make(tokens=0)
    y, stats = run(path, args, top_k=top_k, expert_mask=torch.tensor([True, False, True, True, True]))
    assert y.shape == (0, 16)
    assert stats.expert_rows.tolist() == [0] * 5
    given = Routing(torch.zeros(0, top_k), torch.zeros(0, top_k, dtype=torch.int64))
    y, stats = run(path, args | {"router": given})
    assert y.shape == (0, 16)
    assert stats.expert_rows.tolist() == [0] * 5


def test_rows_that_are_strided():
    args = make(tokens=12)
    expected, _ = run("reference", args)
    wide = torch.empty(12, 32)
    wide[:, ::2] = args["x"]
    for path in PATHS:
        y, _ = run(path, args | {"x": wide[:, ::2]})
        torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)


def test_gradients_of_every_option_agree():
    grads = []
    for path in ("reference", "cpu"):
        leaves = {
            name: tensor.clone().requires_grad_() for name, tensor in make(tokens=20, gated=True).items()
        }
        residual = torch.ones(20, 16, requires_grad=True)
        scale, shift = (torch.linspace(0.5, 2, 16, requires_grad=True) for _ in range(2))
        with force_path(path):
            y, _ = moe_ffn(
                **leaves,
                top_k=2,
                gated=True,
                scoring="sigmoid",
                normalize=True,
                expert_mask=torch.tensor([True, True, False, True, True]),
                residual=residual,
                norm=LayerNormWeights(scale, shift, 1e-5),
            )
        (y * torch.arange(16)).square().mean().backward()
        leaves |= {"residual": residual, "scale": scale, "shift": shift}
        grads.append({name: leaf.grad for name, leaf in leaves.items()})
    for name, grad in grads[0].items():
        assert grad.abs().sum() > 0, name
        torch.testing.assert_close(grads[1][name], grad, atol=1e-3, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scoring": "hardmax"}, "there are softmax, topk_softmax, sigmoid"),
        ({"gated": True}, r"w2 must be \[5, 16, 12\] to fit gated w1 \[5, 24, 16\]"),
        ({"gated": True, "w1": torch.zeros(5, 23, 16)}, "23 is odd"),
        ({"dropout": 1.5}, "dropout must be from 0 to 1, got 1.5"),
        ({"w1": torch.zeros(5, 24, 16).double()}, "experts are float32, bfloat16 or float16"),
        ({"w1": torch.zeros(0, 24, 16)}, "at least one expert"),
        ({"b2": torch.zeros(5, 15)}, "b2 must be"),
        ({"x": torch.zeros(7, 16).half()}, "x is torch.float16 but the others are torch.float32"),
        ({"x": torch.zeros(7, 16, device="meta")}, "x is on meta but the others are on cpu"),
        ({"router": torch.zeros(5, 16, device="meta")}, "router is on meta"),
        ({"expert_mask": torch.ones(5)}, "expert_mask is torch.float32; it must be bool"),
        ({"expert_mask": torch.ones(4, dtype=torch.bool)}, r"expert_mask must be \[5\]"),
        ({"residual": torch.zeros(6, 16)}, r"residual must be \[7, 16\] to fit x"),
        ({"residual": torch.zeros(7, 16).half()}, "residual is torch.float16"),
        ({"norm": LayerNormWeights(torch.ones(16), None, 1e-5)}, "give a residual too"),
    ],
)
def test_options_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        moe_ffn(**{**make(), **change})


@pytest.mark.parametrize(
    ("weight", "bias", "message"),
    [((15,), None, r"norm.weight must be \[16\]"), ((16,), (1,), "norm.bias must be")],
)
def test_a_norm_that_does_not_fit_is_refused(weight, bias, message):
    norm = LayerNormWeights(torch.ones(weight), None if bias is None else torch.ones(bias), 1e-5)
    with pytest.raises(ValueError, match=message):
        moe_ffn(**make(), residual=torch.zeros(7, 16), norm=norm)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("weights", "experts", "message"),
    [
        (torch.ones(7, 1), torch.full((7, 1), 5), "names expert 5, but they run from 0 to 4"),
        (torch.ones(7, 1), torch.full((7, 1), -1), "names expert -1"),
        (torch.ones(7, 2), torch.zeros(7, 1).long(), r"routing.weights must be \[7, 1\]"),
        (torch.ones(6, 1), torch.zeros(6, 1).long(), r"routing.experts must be \[T, k\] with T 7"),
        (torch.ones(7), torch.zeros(7).long(), r"routing.experts must be \[T, k\]"),
        (torch.ones(7, 1), torch.zeros(7, 1), "expert indices are int32 or int64"),
        (torch.ones(7, 9), torch.zeros(7, 9).long(), "top_k must be from 1 to the 5"),
    ],
)
def test_a_routing_that_does_not_fit_is_refused(path, weights, experts, message):
    with pytest.raises(ValueError, match=message):
        run(path, make() | {"router": Routing(weights, experts)})


def test_a_gpu_takes_triton_where_that_can_run_the_call(monkeypatch):
    # The package, whose name the function has too; and a stand-in, since importing triton settles its mode.
    facade = importlib.import_module("fewshard_kernels.moe_ffn")
    kernels = SimpleNamespace(supports=lambda x, router, weights, options: x.reason)
    monkeypatch.setitem(sys.modules, "fewshard_kernels.moe_ffn.triton", kernels)
    assert explain(torch.device("cuda")).path == "triton"
    assert explain(torch.device("mps")).path == "reference"
    for reason, path in ((None, "triton"), ("too wide", "reference")):
        x = SimpleNamespace(device=torch.device("cuda"), reason=reason)
        assert facade._choose(x, None, None, None) == path
    monkeypatch.setattr(facade, "find_spec", lambda _: None)
    assert explain(torch.device("cuda")).reason == "triton is not installed; plain torch runs"
