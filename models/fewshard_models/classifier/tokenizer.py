"""Tokenises for every text model: batches of texts or pairs to token ids.

This file imports no torch of its own: a server tokenises in a process that runs no network.
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
    """The checkpoint's own tokenizer, truncating at `max_tokens` where the caller allows it.

    `has_experts`: the model can tell where tokens go, so items whose caller asks get room for it.
    """

    def __init__(self, directory: Path, max_tokens: int, has_experts: bool = False) -> None:
        self._has_experts = has_experts
        # Without any of these files transformers makes up an empty tokenizer and says nothing.
        if not any(any(directory.glob(name)) for name in _TOKENIZER_FILES):
            raise CheckpointError(
                f"{directory} has no usable tokenizer: none of {', '.join(_TOKENIZER_FILES)} is there"
            )
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(
                directory, trust_remote_code=False, local_files_only=True
            )
        except Exception as error:  # transformers raises many kinds; each means these files are at fault
            raise CheckpointError(f"{directory} has no usable tokenizer: {error}") from error
        # Tokenizers of older checkpoints state an absurd limit (1e30) for "none".
        self.max_tokens = min(max_tokens or 512, self._tokenizer.model_max_length)
        self._has_types = "token_type_ids" in self._tokenizer.model_input_names

    @property
    def pad_token_id(self) -> int:
        return self._tokenizer.pad_token_id or 0

    def estimate(self, inputs: Sequence[Input]) -> int:
        """An estimate of the tokens, from the number of characters."""
        return sum(
            min(self.max_tokens, len(item.text + (item.text_pair or "")) // _CHARACTERS_PER_TOKEN + 3)
            for item in inputs
            if isinstance(item, TextInput)
        )

    def to_input(self, value: Value) -> Input:
        """A text, or a (text, pair) tuple. Raises TypeError."""
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
        """A card stores texts as they are."""
        return TextInput(stored)

    def items(self, inputs: Sequence[Input], truncate: bool) -> list[Item]:
        """Token ids of each input. Raises UnusableInput for what is no text, or too long, or empty."""
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
        return Item(encoded, len(encoded.ids), self._room(encoded) if text.wants_routing else None)

    def _room(self, encoded: TokenIds) -> TokenRouting | None:
        """Where it will be told which experts the tokens went to."""
        if not self._has_experts:
            return None
        return TokenRouting(self._tokenizer.convert_ids_to_tokens(encoded.ids))


def _text(index: int, item: Input) -> TextInput:
    if not isinstance(item, TextInput):
        raise UnusableInput(index, "this model classifies text; send a string")
    return item
