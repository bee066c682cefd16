"""Tokenises texts and text pairs for every text model.

This file does not import torch itself: a server tokenises in a process that runs no network.
"""

from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer

from fewshard_core.values import Input, Item, TextInput, TokenIds, TokenRouting
from fewshard_models.classifier.base import Value
from fewshard_models.errors import CheckpointError, UnusableInput

_CHARACTERS_PER_TOKEN = 3
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")


class TextPreprocessor:
    """The checkpoint's own tokenizer. It truncates at `max_tokens` if the caller allows it.

    has_experts: the model can report expert routing, so items that request it get a place for it.
    """

    def __init__(self, directory: Path, max_tokens: int, has_experts: bool = False) -> None:
        self._has_experts = has_experts
        # Without any of these files transformers silently creates an empty tokenizer.
        if not any(any(directory.glob(name)) for name in _TOKENIZER_FILES):
            raise CheckpointError(
                f"{directory} has no usable tokenizer: none of {', '.join(_TOKENIZER_FILES)} is there"
            )
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(
                directory, trust_remote_code=False, local_files_only=True
            )
        # transformers raises many kinds of errors; each means that these files are at fault
        except Exception as error:
            raise CheckpointError(f"{directory} has no usable tokenizer: {error}") from error
        # Tokenizers of older checkpoints state 1e30 for "no limit".
        self.max_tokens = min(max_tokens or 512, self._tokenizer.model_max_length)
        self._has_types = "token_type_ids" in self._tokenizer.model_input_names

    @property
    def pad_token_id(self) -> int:
        return self._tokenizer.pad_token_id or 0

    def estimate(self, inputs: Sequence[Input]) -> int:
        """Estimate the tokens from the number of characters."""
        return sum(
            min(self.max_tokens, len(item.text + (item.text_pair or "")) // _CHARACTERS_PER_TOKEN + 3)
            for item in inputs
            if isinstance(item, TextInput)
        )

    def costs(self, inputs: Sequence[Input]) -> list[int]:
        """Return the number of characters of each text, or pair of texts."""
        return [
            len(item.text) + len(item.text_pair or "") + 1 if isinstance(item, TextInput) else 1
            for item in inputs
        ]

    def to_input(self, value: Value) -> Input:
        """Accept a text or a (text, pair) tuple. Raises TypeError."""
        match value:
            case str():
                return TextInput(value)
            case (str(text), str(pair)):
                return TextInput(text, pair)
            case Input():
                return value
        raise TypeError(
            f"this model classifies text; give a str or a (text, pair) tuple, not {type(value).__name__}"
        )

    def from_card(self, stored: str) -> Input:
        """Return the text: a card stores texts unchanged."""
        return TextInput(stored)

    def items(self, inputs: Sequence[Input], truncate: bool) -> list[Item]:
        """Return token ids. Raises UnusableInput for an input that is empty, too long or not a text."""
        texts = [_text(index, item) for index, item in enumerate(inputs)]
        return [
            self._item(index, text, encoded)
            for index, (text, encoded) in enumerate(zip(texts, self._encode(texts, truncate), strict=True))
        ]

    def _encode(self, texts: list[TextInput], truncate: bool) -> list[TokenIds]:
        options = {"truncation": truncate, "max_length": self.max_tokens if truncate else None}
        pairs = any(item.text_pair is not None for item in texts)
        if pairs and not all(item.text_pair is not None for item in texts):
            return [encoded for item in texts for encoded in self._encode([item], truncate)]
        found = self._tokenizer(
            [item.text for item in texts],
            [item.text_pair for item in texts] if pairs else None,
            return_attention_mask=False,
            return_token_type_ids=self._has_types,
            **options,
        )
        types = found["token_type_ids"] if self._has_types else [None] * len(texts)
        return [TokenIds(ids, kinds) for ids, kinds in zip(found["input_ids"], types, strict=True)]

    def _item(self, index: int, text: TextInput, encoded: TokenIds) -> Item:
        if not encoded.ids:
            raise UnusableInput(
                index, "the text is empty and this model adds no special tokens; send some text"
            )
        if len(encoded.ids) > self.max_tokens:
            raise UnusableInput(
                index,
                f"{len(encoded.ids)} tokens, over the model's {self.max_tokens}; shorten it or set truncate",
            )
        return Item(encoded, len(encoded.ids), self._routing_of(encoded) if text.wants_routing else None)

    def _routing_of(self, encoded: TokenIds) -> TokenRouting | None:
        """Return the place for the experts of the tokens; None if the model has none."""
        if not self._has_experts:
            return None
        return TokenRouting(self._tokenizer.convert_ids_to_tokens(encoded.ids))


def _text(index: int, item: Input) -> TextInput:
    if not isinstance(item, TextInput):
        raise UnusableInput(index, "this model classifies text; send a string")
    return item
