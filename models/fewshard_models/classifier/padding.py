"""Finds out by trial how texts of different length may share a forward pass of a network.

A file cannot tell: the padding ids of configuration and tokenizer may differ or be absent, and in some
architectures the mask does not hide padding. `PaddedText` calls it when it loads a network.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fewshard_core.formats import NumberFormat
from fewshard_core.values import TokenIds
from fewshard_models.classifier.limits import has_experts, text_config, word_table

Rows = Sequence[TokenIds]


@dataclass(frozen=True, slots=True)
class Padding:
    """How shorter texts are filled up: with which id, and on which side ("right" or "left")."""

    token_id: int
    side: str


Pass = Callable[[Rows, Padding | None], Sequence[NDArray[np.float32]]]
"""Runs one forward pass; returns fp32 logits of each row."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """Which texts may share a pass.

    padding: how texts of different length may; None if they cannot.
    is_batched: whether texts of equal length may.
    """

    padding: Padding | None
    is_batched: bool

    @property
    def mode(self) -> str:
        """In words: "padded", "length by length" or "one by one"."""
        if self.padding is not None:
            return "padded"
        return "length by length" if self.is_batched else "one by one"


class Trial:
    """Compares a short text alone with the same text beside a longer one.

    short, long: token ids of two texts.
    """

    def __init__(
        self, network: Any, run: Pass, number_format: NumberFormat, short: TokenIds, long: TokenIds
    ) -> None:
        self._network, self._run, self._format = network, run, number_format
        self._short, self._long = short, long
        self._alone = run([short], None)[0]

    def sharing(self, candidates: Sequence[Padding]) -> Sharing:
        """Return the first kind of padding that changes no answer, and whether equal lengths may share."""
        padding = next((each for each in candidates if self._is_hidden(each)), None)
        return Sharing(padding, padding is not None or self._may_share())

    def _is_hidden(self, padding: Padding) -> bool:
        try:
            beside = self._run([self._short, self._long], padding)[0]
            with self._other_padding(padding):
                changed = self._run([self._short, self._long], padding)[0]
        # a network may raise anything for an input that it was not made for
        except Exception:  # noqa: BLE001
            return False
        return self._are_close(beside) and self._are_equal(beside, changed)

    def _may_share(self) -> bool:
        other = TokenIds(self._short.ids[::-1], self._short.types)
        try:
            return self._are_close(self._run([self._short, other], None)[0])
        except Exception:  # noqa: BLE001  as above
            return False

    def _are_close(self, found: NDArray[np.float32]) -> bool:
        scale = max(float(np.abs(self._alone).max()), 0.1)
        return float(np.abs(found - self._alone).max()) <= self._format.tolerance * scale

    def _are_equal(self, found: NDArray[np.float32], changed: NDArray[np.float32]) -> bool:
        """Return whether two passes of the same shape agree: to the last bit, unless rounding may differ.

        Such a comparison finds in 16 bits what is far below their rounding. Experts get other groups of
        tokens if the padding differs, so their products may round differently.
        """
        if np.array_equal(found, changed):
            return True
        scale = max(float(np.abs(found).max()), 0.1)
        return bool(np.abs(found - changed).max() <= self._format.kernel_tolerance * scale) and has_experts(
            self._network.config
        )

    @contextmanager
    def _other_padding(self, padding: Padding) -> Iterator[None]:
        """Meanwhile the padding token has another embedding, which no answer may show."""
        weight = word_table(self._network)
        # Decoders of an encoder-decoder start with the padding token.
        if weight is None or self._network.config.is_encoder_decoder:
            yield
            return
        with torch.no_grad():
            kept = weight[padding.token_id].clone()
            weight[padding.token_id] = weight[self._long.ids[0]] + 1
            try:
                yield
            finally:
                weight[padding.token_id] = kept


def candidates(config: Any, tokenizer_id: int | None, side: str, num_rows: int) -> list[Padding]:
    """Return the paddings to try: the tokenizer's side first, the network's id first."""
    ids = [getattr(text_config(config), "pad_token_id", None), tokenizer_id]
    usable = [each for each in ids if each is not None and each >= 0 and (not num_rows or each < num_rows)]
    sides = ["left", "right"] if side == "left" else ["right", "left"]
    return [Padding(each, where) for where in sides for each in dict.fromkeys(usable)]


def groups(lengths: Sequence[int], max_ratio: float) -> list[int]:
    """Divide ascending lengths into passes. Returns the number of texts of each, in order.

    All passes together compute at most `max_ratio` times as many tokens as the texts have. Neighbours are
    joined where that adds least padding, so that there are few passes.
    """
    parts = [[lengths[0], 0]] if lengths else []
    for length in lengths:
        if parts[-1][0] != length:
            parts.append([length, 0])
        parts[-1][1] += 1
    room = (max_ratio - 1) * sum(lengths)
    while len(parts) > 1:
        costs = [(above[0] - below[0]) * below[1] for below, above in pairwise(parts)]
        best = min(range(len(costs)), key=costs.__getitem__)
        if costs[best] > room:
            break
        room -= costs[best]
        parts[best + 1][1] += parts[best][1]
        del parts[best]
    return [count for _, count in parts]
