"""Slices of a test set by class, length and negation, and the expert routing of each slice.

`tasks` and `assessment` call it; `markdown` uses `most_unlike`.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from fewshard_models.text import FewshardTextForSequenceClassification, pack

Rows = NDArray[np.int64]
LENGTHS = {"short (1-10 words)": (0, 10), "medium (11-20)": (11, 20), "long (21 and more)": (21, 10**9)}
_NEGATION = re.compile(
    r"\b(?:not|no|never|none|nothing|nobody|nowhere|neither|nor|without|cannot|hardly|barely)\b|n['’]t\b",
    re.IGNORECASE,
)


def class_slices(labels: NDArray[np.int64], names: Sequence[str]) -> dict[str, Rows]:
    """Return the rows of each class, named `class <name>`."""
    return {f"class {name}": np.flatnonzero(labels == index) for index, name in enumerate(names)}


def text_slices(texts: Sequence[str]) -> dict[str, Rows]:
    """Return the rows of each length, and with and without negation; empty slices are left out."""
    lengths = np.array([len(text.split()) for text in texts])
    found = {
        f"length {name}": np.flatnonzero((lengths >= low) & (lengths <= high))
        for name, (low, high) in LENGTHS.items()
    }
    negated = np.array([has_negation(text) for text in texts])
    found["negation"], found["no negation"] = np.flatnonzero(negated), np.flatnonzero(~negated)
    return {name: rows for name, rows in found.items() if len(rows)}


def has_negation(text: str) -> bool:
    """Return whether an English negation occurs. "n't" counts, also when separate as in SST-2."""
    return _NEGATION.search(text) is not None


Shares = NDArray[np.float64]
_BATCH = 256


def routing_shares(
    model: FewshardTextForSequenceClassification,
    token_ids: Sequence[Sequence[int]],
    slices: Mapping[str, Rows],
) -> dict[str, Shares]:
    """Return each slice's share of tokens by expert, [num_layers, num_experts]; rows sum to one."""
    return {name: _shares(model, [token_ids[row] for row in rows]) for name, rows in slices.items()}


def most_unlike(shares: Mapping[str, Shares], whole: Shares) -> tuple[str, float]:
    """Return the slice whose routing differs most from the whole's, and the difference.

    The difference is the share of its tokens that would have to change experts, in the layer where that is
    largest (total variation).
    """
    distances = {name: float(0.5 * np.abs(each - whole).sum(axis=1).max()) for name, each in shares.items()}
    name = max(distances, key=distances.__getitem__)
    return name, distances[name]


def _shares(model: FewshardTextForSequenceClassification, token_ids: Sequence[Sequence[int]]) -> Shares:
    device = next(model.parameters()).device
    order = sorted(token_ids, key=len)
    rows = torch.zeros(len(model.config.expert_layers), model.config.num_experts, dtype=torch.float64)
    with torch.inference_mode():
        for start in range(0, len(order), _BATCH):
            out = model.forward_packed(pack(order[start : start + _BATCH], None, device))
            rows += torch.stack([stats.expert_rows for stats in out.moe_stats]).cpu()
    shares: Shares = (rows / rows.sum(dim=1, keepdim=True)).numpy()
    return shares
