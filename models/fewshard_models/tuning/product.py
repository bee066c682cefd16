"""Times one product in each number format, for networks that are too large to be timed whole."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from fewshard_core.formats import FORMATS
from fewshard_models.devices import storage_dtype
from fewshard_models.tuning.choice import Candidate, Measured, decide
from fewshard_models.tuning.rounds import Run, time_batches

_ROWS, _WIDTH_IN, _WIDTH_OUT = 256, 768, 3072
LIMIT_S = 0.5


def measure_products(names: Sequence[str]) -> Measured:
    """Compare formats by a product with packed weights, of the size that encoders have most of, on the CPU.

    Its items are the product's rows.
    """
    rates = time_batches({name: _run(name) for name in names}, (_ROWS,), LIMIT_S)
    return decide([Candidate(name, rates[name]) for name in names])


def _run(name: str) -> Run:
    assert FORMATS[name].is_cast
    dtype = storage_dtype(name)
    rows, weight = torch.randn(_ROWS, _WIDTH_IN).to(dtype), torch.randn(_WIDTH_OUT, _WIDTH_IN).to(dtype)
    if not torch.backends.mkldnn.is_available():
        return partial(_multiply_plain, rows, weight)
    return partial(_multiply_packed, rows, torch.ops.mkldnn._reorder_linear_weight(weight))


def _multiply_packed(rows: Tensor, weight: Tensor, _num_rows: int) -> object:
    return torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")


def _multiply_plain(rows: Tensor, weight: Tensor, _num_rows: int) -> object:
    return torch.nn.functional.linear(rows, weight)
