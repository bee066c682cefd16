"""8-bit products against the same numbers in fp32: codes, zero points, fused activations, and experts."""

import pytest
import torch
import torch.nn.functional as F

from fewshard_core.formats import FORMATS
from fewshard_kernels import (
    ExpertWeights,
    Int8Experts,
    Int8Product,
    PackedInt8Experts,
    Quantisation,
    Routing,
    force_path,
    moe_ffn,
    quantised_weight,
)

pytestmark = pytest.mark.skipif(
    not FORMATS["int8"].multiplies("cpu"), reason="this CPU cannot multiply 8 bits (VNNI)"
)
ACTIVATIONS = {
    None: lambda x: x,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}
HIDDEN, WIDTH, EXPERTS = 48, 24, 4


def decoded(weight, scale):
    return weight.float() * scale.view(-1, *[1] * (weight.ndim - 1))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("rows", [1, 17, 64])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_product_is_that_of_the_decoded_numbers(activation, rows, has_bias):
    torch.manual_seed(rows)
    x, bias = torch.randn(rows, HIDDEN) + 0.5, torch.randn(WIDTH) if has_bias else None
    weight, scale = quantised_weight(torch.randn(WIDTH, HIDDEN))
    code = Quantisation.of_range(float(x.min()), float(x.max()))
    coded = code.encode(x)
    wanted = ACTIVATIONS[activation](F.linear(code.decode(coded), decoded(weight, scale), bias))
    found = Int8Product(weight, scale, bias, code, torch.float32, activation)(coded)
    torch.testing.assert_close(found, wanted, atol=2e-3, rtol=1e-4)
    out = Quantisation.of_range(float(wanted.min()), float(wanted.max()))
    again = Int8Product(weight, scale, bias, code, out, activation)(coded)
    assert again.dtype == torch.uint8
    assert (out.decode(again) - wanted).abs().max() < 0.51 * out.scale + 2e-3


def test_extreme_sums_are_exact():
    """255 times 127 over a long row: 16-bit sums, as on CPUs without VNNI, would be cut."""
    weight, rows = torch.full((8, 4096), 127, dtype=torch.int8), torch.full((3, 4096), 255, dtype=torch.uint8)
    found = Int8Product(weight, torch.ones(8), None, Quantisation(1.0, 0), torch.float32)(rows)
    assert found.unique().tolist() == [255 * 127 * 4096]


def test_a_row_does_not_depend_on_its_neighbours():
    torch.manual_seed(0)
    weight, scale = quantised_weight(torch.randn(WIDTH, HIDDEN))
    product = Int8Product(weight, scale, torch.randn(WIDTH), Quantisation(0.02, 128), torch.bfloat16, "gelu")
    rows = torch.randint(0, 256, (33, HIDDEN), dtype=torch.uint8)
    alone = torch.cat([product(row[None]) for row in rows])
    torch.testing.assert_close(alone, product(rows), atol=1e-3, rtol=2**-7)  # one step of bf16


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_encoding_rounds_cuts_and_keeps_the_layout(layout):
    x = torch.linspace(-3, 3, 2 * 3 * 4 * 5).view(2, 3, 4, 5).contiguous(memory_format=layout)
    code = Quantisation.of_range(-1.0, 2.0)
    coded = code.encode(x)
    assert coded.is_contiguous(memory_format=layout)
    wanted = ((x / code.scale).round() + code.zero_point).clamp(0, 255)
    assert torch.equal(coded.float(), wanted)
    assert code.decode(code.encode(torch.zeros(1))).item() == 0


def test_a_range_without_zero_is_widened_to_hold_it():
    assert Quantisation.of_range(1.0, 2.55) == Quantisation.of_range(0.0, 2.55) == Quantisation(0.01, 0)
    assert Quantisation.of_range(-2.55, -1.0).zero_point == 255
    assert Quantisation.of_range(0.0, 0.0).scale == 1.0


def experts(seed=0):
    torch.manual_seed(seed)
    plain = ExpertWeights(
        torch.randn(EXPERTS, WIDTH, HIDDEN) / 5,
        torch.randn(EXPERTS, WIDTH),
        torch.randn(EXPERTS, HIDDEN, WIDTH) / 5,
        torch.randn(EXPERTS, HIDDEN),
    )
    (w1, s1), (w2, s2) = (quantised_weight(each.flatten(0, 1)) for each in (plain.w1, plain.w2))
    coded = Int8Experts(
        w1.view(plain.w1.shape),
        s1.view(EXPERTS, -1),
        plain.b1,
        w2.view(plain.w2.shape),
        s2.view(EXPERTS, -1),
        plain.b2,
        Quantisation.of_range(-4.5, 4.5),
        tuple(Quantisation.of_range(-0.2, 6.0 + expert) for expert in range(EXPERTS)),
    )
    return plain, PackedInt8Experts(coded, "gelu")


@pytest.mark.parametrize("rows", [0, 1, 5, 90])
@pytest.mark.parametrize("options", [{}, {"top_k": 2, "normalize": True}, {"top_k": EXPERTS}])
def test_experts_are_close_to_the_reference(rows, options):
    plain, packed = experts()
    x, router = torch.randn(rows, HIDDEN), torch.randn(EXPERTS, HIDDEN)
    with force_path("reference"):
        wanted, wanted_stats = moe_ffn(x, router, *plain, **options)
    found, stats = moe_ffn(x, router, packed, **options)
    assert torch.equal(stats.expert_rows, wanted_stats.expert_rows)
    assert found.shape == wanted.shape
    if rows:
        assert (found - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_masked_experts_residual_and_a_given_routing():
    plain, packed = experts()
    x = torch.randn(20, HIDDEN)
    routing = Routing(torch.rand(20, 2), torch.randint(0, EXPERTS, (20, 2)))
    options = {"expert_mask": torch.tensor([True, False, True, False]), "residual": torch.randn(20, HIDDEN)}
    with force_path("reference"):
        wanted, _ = moe_ffn(x, routing, *plain, **options)
    found, _ = moe_ffn(x, routing, packed, **options)
    assert (found - wanted).abs().max() < 0.05 * wanted.abs().max()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"gated": True}, "without a gate"),
        ({"activation": "relu"}, "packed for gelu"),
        ({"dropout": 0.1}, "nor dropout"),
        ({"b1": torch.zeros(1)}, "leave these out"),
        ({"x": torch.zeros(2, 3)}, r"x must be \[T, 48\]"),
        ({"x": torch.zeros(2, HIDDEN, requires_grad=True)}, "have no gradient"),
        ({"top_k": 5}, "top_k must be from 1 to the 4 experts"),
        ({"router": torch.zeros(3, HIDDEN)}, "to fit the experts"),
    ],
)
def test_what_8_bit_experts_cannot_compute_is_refused(options, said):
    _, packed = experts()
    x, router = torch.zeros(2, HIDDEN), torch.zeros(EXPERTS, HIDDEN)
    with pytest.raises(ValueError, match=said):
        moe_ffn(**{"x": x, "router": router, "w1": packed} | options)
