"""`sparse_linear` against its definition, on the path the gate chose and on each path by force."""

import pytest
import torch
from torch import Tensor

from fewshard_kernels.gate import DENSE, Gate
from fewshard_kernels.sparse_linear import SparseWeight, pack_sparse, sparse_linear
from fewshard_kernels.sparse_linear.reference import sparse_linear_reference

# (atol, rtol) against the reference in float64.
TOLERANCE = {
    torch.float32: (1e-5, 1e-5),
    torch.bfloat16: (2e-2, 2e-2),
    torch.float16: (2e-3, 2e-3),
}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SIZES = [(1, 32, 64), (7, 96, 64), (100, 64, 160), (33, 128, 32)]


def mask_2_of_4(out: int, width: int) -> Tensor:
    scores = torch.rand(out, width // 4, 4, generator=torch.Generator().manual_seed(1))
    kept = torch.zeros_like(scores, dtype=torch.bool).scatter_(2, scores.topk(2, dim=-1).indices, True)
    return kept.view(out, width)


def mask_blocks(out: int, width: int, size: int = 16) -> Tensor:
    kept = torch.rand(out // size, width // size, generator=torch.Generator().manual_seed(2)) < 0.5
    return kept.repeat_interleave(size, 0).repeat_interleave(size, 1)


MASKS = {"2:4": mask_2_of_4, "block": mask_blocks}


def layer(
    pattern: str, out: int, width: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, mask and bias."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(out, width, generator=generator) * width**-0.5
    bias, mask = torch.randn(out, generator=generator), MASKS[pattern](out, width)
    return weight.to(device, dtype), mask.to(device), bias.to(device, dtype)


def pack(pattern: str, weight: Tensor, mask: Tensor) -> SparseWeight:
    return pack_sparse(weight * mask, pattern, block_size=16)


class Rigged:
    """A clock under which the candidate at `fastest` in the gate's order always wins."""

    def __init__(self, fastest: int) -> None:
        self.fastest, self.calls = fastest, 0

    def __call__(self, call) -> float:
        call()
        self.calls += 1
        return 0.1 if (self.calls - 1) % 2 == self.fastest else 1.0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("pattern", MASKS)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("fastest", [0, 1], ids=["dense wins", "sparse wins"])
def test_every_path_is_the_reference(
    device: str, dtype: torch.dtype, sizes: tuple[int, int, int], pattern: str, biased: bool, fastest: int
) -> None:
    rows, out, width = sizes
    weight, mask, bias = layer(pattern, out, width, dtype, device)
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(3)).to(device, dtype)
    y = sparse_linear(
        x, pack(pattern, weight, mask), bias if biased else None, gate=Gate(Rigged(fastest), repeats=1)
    )
    expected = sparse_linear_reference(x.double(), weight.double(), mask, bias.double() if biased else None)
    atol, rtol = TOLERANCE[dtype]
    assert y.dtype == dtype
    assert y.is_contiguous()
    torch.testing.assert_close(y.double(), expected, atol=atol, rtol=rtol)


def test_the_reference_is_its_formula() -> None:
    weight, mask, x = (
        torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        torch.tensor([[True, False], [True, True]]),
        [5.0, 6.0],
    )
    y = sparse_linear_reference(torch.tensor([x]), weight, mask, torch.tensor([0.5, 0.0]))
    assert y.tolist() == [[5.5, 39.0]]


def test_the_gate_decides_which_path_runs() -> None:
    weight, mask, _ = layer("block", 64, 64, torch.float32, "cpu")
    packed, x = pack("block", weight, mask), torch.randn(8, 64)
    for fastest, chosen in enumerate((DENSE, "sparse")):
        gate = Gate(Rigged(fastest), repeats=1)
        sparse_linear(x, packed, gate=gate)
        assert [each.chosen for each in gate.decisions] == [chosen]
    assert packed.form in gate.decisions[0].key.op
    # A compressed form with other numbers shows whose product came back.
    other = SparseWeight(packed.dense, packed.form, (2 * packed.dense).to_sparse_bsr((16, 16)))
    torch.testing.assert_close(sparse_linear(x, other, gate=gate), 2 * x @ packed.dense.T)


def test_batches_of_one_bucket_share_a_decision() -> None:
    weight, mask, _ = layer("block", 32, 32, torch.float32, "cpu")
    gate, packed = Gate(repeats=1), pack("block", weight, mask)
    for rows in (5, 8, 7, 9):
        sparse_linear(torch.randn(rows, 32), packed, gate=gate)
    assert [each.key.batch for each in gate.decisions] == [8, 16]


def test_2_of_4_on_a_cpu_is_dense_and_says_why() -> None:
    weight, mask, _ = layer("2:4", 32, 64, torch.bfloat16, "cpu")
    packed, gate = pack("2:4", weight, mask), Gate(Rigged(1))
    assert packed.compressed is None
    sparse_linear(torch.ones(4, 64, dtype=torch.bfloat16), packed, gate=gate)
    ((what, chosen, _),) = gate.explain()
    assert chosen == DENSE
    assert "2:4 products need a GPU, the weight is on cpu" in what


def test_leading_dimensions_and_empty_batches() -> None:
    weight, mask, bias = layer("block", 48, 32, torch.float32, "cpu")
    packed, gate = pack("block", weight, mask), Gate(Rigged(1), repeats=1)
    x = torch.randn(2, 3, 32)
    y = sparse_linear(x, packed, bias, gate=gate)
    torch.testing.assert_close(y, sparse_linear_reference(x, weight, mask, bias))
    assert sparse_linear(x[:0], packed, bias, gate=gate).shape == (0, 3, 48)
    assert sparse_linear(x[0, 0], packed, bias, gate=gate).shape == (48,)
    assert {each.key.batch for each in gate.decisions} == {8, 1}, "the empty batch is not measured"


def test_a_nan_stays_in_its_row() -> None:
    weight, mask, _ = layer("block", 48, 32, torch.float32, "cpu")
    x = torch.randn(5, 32)
    x[2] = float("nan")
    for fastest in (0, 1):
        y = sparse_linear(x, pack("block", weight, mask), gate=Gate(Rigged(fastest), repeats=1))
        assert y.isnan().any(dim=1).tolist() == [False, False, True, False, False]


def test_gradients_take_the_dense_path() -> None:
    weight, mask, _ = layer("block", 32, 32, torch.float32, "cpu")
    x, gate = torch.randn(4, 32, requires_grad=True), Gate(Rigged(1), repeats=1)
    sparse_linear(x, pack("block", weight, mask), gate=gate).sum().backward()
    torch.testing.assert_close(x.grad, (weight * mask).sum(dim=0).expand(4, -1))
    assert gate.decisions == ()


@pytest.mark.parametrize(
    ("weight", "pattern", "words"),
    [
        (torch.ones(8, 8), "2:4", "not 2:4"),
        (torch.zeros(8, 6), "2:4", "multiple of 4"),
        (torch.zeros(16, 24), "block", "do not divide"),
        (torch.zeros(16, 16), "rows", "no pattern 'rows'; there are 2:4, block"),
        (torch.zeros(16), "block", "a weight is"),
        (torch.zeros(16, 16, dtype=torch.float64), "block", "a weight is"),
    ],
)
def test_weights_without_the_pattern_are_refused(weight: Tensor, pattern: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        pack_sparse(weight, pattern, block_size=16)


@pytest.mark.parametrize(
    ("x", "bias", "words"),
    [
        (torch.ones(2, 31), None, r"x must be \[\.\.\., 32\]"),
        (torch.ones(2, 32), torch.ones(3), r"bias must be \[16\]"),
        (torch.ones(2, 32, dtype=torch.bfloat16), None, "x is torch.bfloat16 on cpu"),
        (torch.ones(2, 32), torch.ones(16, dtype=torch.float16), "bias is torch.float16 on cpu"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(x: Tensor, bias: Tensor | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sparse_linear(x, pack_sparse(torch.zeros(16, 32), "block", 16), bias, gate=Gate())
