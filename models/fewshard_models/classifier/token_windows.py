"""Tokenises texts for models that label tokens: a long text becomes several windows, which overlap.

Windows and the places of tokens are the tokenizer's own. `PaddedTokens` makes the preprocessor.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding

from fewshard_core.values import Input, Item, TextInput, TokenIds, TokenLabels, Window
from fewshard_models.classifier.encoding import FastEncoder, PlainEncoder, encoder_of
from fewshard_models.classifier.tokenizer import CHARACTERS_PER_TOKEN, TextPreprocessor, encoded_by, text_of
from fewshard_models.errors import CheckpointError, UnusableInput

MAX_OVERLAP = 128
"""The most tokens that two windows share. Short ones share a quarter of what they hold."""


class WindowEncoder(FastEncoder):
    """Encodes a text as all its windows, each with special tokens."""

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        super().__init__(tokenizer, max_tokens)
        self._unknown_id = tokenizer.unk_token_id
        self._knows_words = bool(getattr(self._backend.model, "continuing_subword_prefix", None))

    def cut_into_windows(self) -> None:
        """From now on, texts are cut. A call of transformers' tokenizer undoes it, so none may follow."""
        room = self._max_tokens - self._backend.num_special_tokens_to_add(False)
        self._backend.enable_truncation(self._max_tokens, stride=max(0, min(MAX_OVERLAP, room // 4)))

    def windows(self, texts: Sequence[str]) -> list[list[Encoding]]:
        """Return the windows of each text, from its beginning to its end."""
        return [[each, *each.overflowing] for each in self._backend.encode_batch(list(texts))]

    def ids(self, window: Encoding) -> TokenIds:
        """Return what the network takes of a window."""
        return self._ids(window)

    def window(self, text: str, encoding: Encoding) -> Window:
        """Return the places of a window's tokens in its text."""
        rows = [row for row, is_special in enumerate(encoding.special_tokens_mask) if not is_special]
        places, tokens, ids = encoding.offsets, encoding.tokens, encoding.ids
        continues = [
            ids[row] != self._unknown_id and self._continues(text, tokens[row], *places[row]) for row in rows
        ]
        return Window(
            np.array(rows, np.int64),
            np.array([places[row][0] for row in rows], np.int64),
            np.array([places[row][1] for row in rows], np.int64),
            np.array(continues, np.bool_),
        )

    def _continues(self, text: str, token: str, start: int, end: int) -> bool:
        """Return whether a token continues a word: it is marked so, or no space is before it.

        WordPiece marks it by a prefix that the text does not have. Other tokenizers know no words.
        """
        if self._knows_words:
            return len(token) != end - start
        return start > 0 and " " not in text[start - 1 : start + 1]


class TokenPreprocessor(TextPreprocessor):
    """Makes one item of each text, whose features are the token ids of each window."""

    _encoder: WindowEncoder

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._encoder.cut_into_windows()

    def _encoder_of(self, directory: Path, tokenizer: Any) -> FastEncoder | PlainEncoder:
        if isinstance(encoder_of(tokenizer, self.max_tokens), PlainEncoder):
            raise CheckpointError(
                f"{directory} has a {type(tokenizer).__name__}, which does not tell where in a text its "
                "tokens are; a model that labels tokens needs a tokenizer.json"
            )
        return WindowEncoder(tokenizer, self.max_tokens)

    def estimate(self, inputs: Sequence[Input]) -> int:
        """See `TextPreprocessor.estimate`; texts are never cut."""
        return sum(
            len(item.text) // CHARACTERS_PER_TOKEN + 3 for item in inputs if isinstance(item, TextInput)
        )

    def costs(self, inputs: Sequence[Input]) -> list[int]:
        """See `TextPreprocessor.costs`; texts are tokenised as a whole."""
        return [len(item.text) + 1 if isinstance(item, TextInput) else 1 for item in inputs]

    def items(self, inputs: Sequence[Input], truncate: bool) -> list[Item]:
        """Return items. Raises UnusableInput for a pair, for what is no text, and, unless `truncate`, for a
        text of several windows."""
        texts = [text_of(index, item) for index, item in enumerate(inputs)]
        for index, item in enumerate(texts):
            if item.text_pair is not None:
                raise UnusableInput(index, "this model labels the tokens of one text; send no pair")
        encoded = encoded_by(lambda: self._encoder.windows([item.text for item in texts]), texts)
        return [
            self._token_item(index, text, windows, truncate)
            for index, (text, windows) in enumerate(zip(texts, encoded, strict=True))
        ]

    def _token_item(self, index: int, text: TextInput, encodings: Sequence[Encoding], truncate: bool) -> Item:
        if len(encodings) > 1 and not truncate:
            raise UnusableInput(
                index,
                f"over the model's {self.max_tokens} tokens; shorten it, or set truncate, and it is read in "
                "windows that overlap",
            )
        parts = [self._item(index, text, self._encoder.ids(each)) for each in encodings]
        windows = tuple(self._encoder.window(text.text, each) for each in encodings)
        sizes = tuple(part.num_tokens for part in parts)
        features = tuple(part.features for part in parts)
        return Item(features, sum(sizes), tokens=TokenLabels(text.text, windows, sizes))
