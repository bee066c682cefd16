"""Runs a text model over a list of texts, in batches of similar lengths. Used by recipes and evaluation."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from fewshard_models.text.modeling import FewshardTextForSequenceClassification, PackedOutput
from fewshard_models.text.packing import PackedTokens, pack

MAX_TOKENS = 128


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, with special tokens, truncated to 128 tokens."""
    return list(tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"])


def over_all(
    model: FewshardTextForSequenceClassification,
    token_ids: Sequence[Sequence[int]],
    of_batch: Callable[[PackedTokens, PackedOutput], Tensor],
    autocast: bool = False,
) -> Tensor:
    """`of_batch` for every text, [N, ...] in the original order; with `autocast` the model runs in bf16."""
    device = next(model.parameters()).device

    def answer(packed: PackedTokens) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast):
            out = model.forward_packed(packed)
        return of_batch(packed, out)

    return over_batches(token_ids, answer, device)


def over_batches(
    token_ids: Sequence[Sequence[int]],
    answer: Callable[[PackedTokens], Tensor],
    device: torch.device,
    batch_size: int = 256,
) -> Tensor:
    """Concatenated `answer` [n, ...] of length-sorted batches: [N, ...] in the original order, on the CPU."""
    order = sorted(range(len(token_ids)), key=lambda row: len(token_ids[row]))
    parts = []
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            parts.append(answer(pack([token_ids[row] for row in rows], None, device)).cpu())
    results = torch.cat(parts)
    inverse = torch.empty(len(order), dtype=torch.int64)
    inverse[torch.tensor(order)] = torch.arange(len(order))
    return results[inverse]
