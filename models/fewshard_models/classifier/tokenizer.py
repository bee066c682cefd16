"""Tokenises texts and text pairs for every text model.

It is made where the network is, with transformers, and used in a server's process that runs no network.
There, unpickling it imports neither torch nor transformers, unless the tokenizer is one in Python.
"""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

from fewshard_core.values import Input, Item, TextInput, TokenIds, TokenRouting
from fewshard_models.classifier.base import Value
from fewshard_models.classifier.encoding import FastEncoder, PlainEncoder, encoder_of
from fewshard_models.errors import CheckpointError, UnusableInput

EncodedT = TypeVar("EncodedT")

DEFAULT_MAX_TOKENS = 2048
"""The limit of a model for which neither network nor tokenizer states one."""
MAX_PROBE_TOKENS = 512
"""Attention over 2,048 tokens takes even a tiny network seconds, and a large one gigabytes."""
CHARACTERS_PER_TOKEN = 3
_LONG = 50_000
"""Characters of a text from which on a beginning is tokenised first, to see whether it is too long."""
_HIGHEST_LIMIT = 10**7
"""Tokenizers of older checkpoints state 1e30 for "no limit"."""


class TextPreprocessor:
    """The checkpoint's own tokenizer. It truncates at `max_tokens` if the caller allows it.

    max_tokens: the most tokens of one input, by the network; 0 if it has no limit.
    has_experts: the model can report expert routing, so items that request it get a place for it.
    num_rows: the rows of the network's embedding; 0 if every id has one.
    num_types: the segments that the network knows; 0 if it takes none, None if it is not known.
    refused_ids: ids that the network cannot process within a text.
    """

    def __init__(
        self,
        directory: Path,
        max_tokens: int,
        has_experts: bool = False,
        num_rows: int = 0,
        num_types: int | None = None,
        refused_ids: Collection[int] = (),
    ) -> None:
        from fewshard_models.classifier.tokenizer_files import load_tokenizer

        tokenizer = load_tokenizer(directory)
        _check_vocabulary(directory, tokenizer, num_rows)
        stated = tokenizer.model_max_length
        limits = [limit for limit in (max_tokens, stated) if limit and 0 < limit < _HIGHEST_LIMIT]
        self.max_tokens = int(min(limits, default=DEFAULT_MAX_TOKENS))
        self.pad_token_id: int | None = tokenizer.pad_token_id
        """The id that the tokenizer pads with; None if it has none."""
        self.padding_side = str(tokenizer.padding_side)
        """Where the tokenizer pads: "right" or "left"."""
        self.min_tokens = 1
        """Networks that halve a text several times cannot answer shorter ones; set by who finds that out."""
        self._encoder = self._encoder_of(directory, tokenizer)
        self._outputs = _outputs(tokenizer)
        self._words = _words(tokenizer)
        self.has_experts = has_experts
        self._num_rows, self._num_types = num_rows, num_types
        self._refused_ids = frozenset(refused_ids)

    def _encoder_of(self, directory: Path, tokenizer: Any) -> FastEncoder | PlainEncoder:
        return encoder_of(tokenizer, self.max_tokens)

    def input_names(self) -> list[str]:
        """Return the arguments that the tokenizer makes for a network. Raises CheckpointError if texts alone
        are not enough for it."""
        if isinstance(self._outputs, str):
            raise CheckpointError(self._outputs)
        return self._outputs

    def estimate(self, inputs: Sequence[Input]) -> int:
        """Estimate the tokens from the number of characters."""
        return sum(
            min(self.max_tokens, len(item.text + (item.text_pair or "")) // CHARACTERS_PER_TOKEN + 3)
            for item in inputs
            if isinstance(item, TextInput)
        )

    def costs(self, inputs: Sequence[Input]) -> list[int]:
        """Return the characters that are tokenised of each input, plus 1. Of a long text with spaces only a
        beginning is."""
        return [
            self._encoder.num_characters(item) + 1 if isinstance(item, TextInput) else 1 for item in inputs
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

    def probe_inputs(self) -> list[Input]:
        """Return a word of the tokenizer's vocabulary, two lines of such words, and a text at the limit.

        A limit above `MAX_PROBE_TOKENS` is not reached.
        """
        words = self._words
        num_words = min(self.max_tokens, MAX_PROBE_TOKENS)
        longest = (words * (num_words // len(words) + 1))[:num_words]
        lines = [words[: self.min_tokens], words[1:], words, longest]
        return [TextInput(" ".join(line)) for line in lines]

    def usual_inputs(self, number: int) -> list[Input]:
        """Return texts of 4 to 40 words, 22 on average, as sentences have; of many different lengths."""
        words = self._words
        lengths = (min(self.max_tokens, 4 + 11 * index % 37) for index in range(number))
        return [
            TextInput(" ".join((words * (length // len(words) + 1))[: max(length, self.min_tokens)]))
            for length in lengths
        ]

    def items(self, inputs: Sequence[Input], truncate: bool) -> list[Item]:
        """Return token ids. Raises UnusableInput for an input that is empty, too long or not a text."""
        texts = [text_of(index, item) for index, item in enumerate(inputs)]
        if not truncate:
            self._check_lengths(texts)
        encoded = encoded_by(lambda: self._encoder.encode(texts, truncate), texts)
        return [
            self._item(index, text, each)
            for index, (text, each) in enumerate(zip(texts, encoded, strict=True))
        ]

    def _check_lengths(self, texts: Sequence[TextInput]) -> None:
        """Raise UnusableInput for a long text whose beginning has too many tokens, before all are made."""
        for index, item in enumerate(texts):
            if len(item.text) + len(item.text_pair or "") > _LONG and self._encoder.exceeds(item):
                raise UnusableInput(
                    index, f"more than the model's {self.max_tokens} tokens; shorten it or set truncate"
                )

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
        if len(encoded.ids) < self.min_tokens:
            raise UnusableInput(
                index,
                f"{len(encoded.ids)} tokens, and this network needs {self.min_tokens}; send a longer text",
            )
        self._check_ids(index, encoded)
        if self._num_types == 0:
            encoded = TokenIds(encoded.ids, None)
        return Item(encoded, len(encoded.ids), self._routing_of(encoded) if text.wants_routing else None)

    def _check_ids(self, index: int, encoded: TokenIds) -> None:
        """Raise UnusableInput for a token that the network cannot process."""
        highest = max(encoded.ids)
        if self._num_rows and highest >= self._num_rows:
            raise UnusableInput(
                index,
                f"the network has no embedding of the token {self._spelled(highest)} (id {highest} of "
                f"{self._num_rows}); leave it out, or enlarge the embedding: model.resize_token_embeddings",
            )
        for refused in self._refused_ids.intersection(encoded.ids):
            raise UnusableInput(
                index, f"the text holds {self._spelled(refused)}, which stands for no text; leave it out"
            )
        if self._num_types and encoded.types is not None and max(encoded.types) >= self._num_types:
            raise UnusableInput(
                index,
                f"the network knows {self._num_types} kinds of segments, too few for this; send no pair",
            )

    def _spelled(self, token_id: int) -> str:
        return repr(self._encoder.tokens([token_id])[0])

    def _routing_of(self, encoded: TokenIds) -> TokenRouting | None:
        """Return the place for the experts of the tokens; None if the model has none."""
        if not self.has_experts:
            return None
        return TokenRouting(self._encoder.tokens(encoded.ids))


def _check_vocabulary(directory: Path, tokenizer: Any, num_rows: int) -> None:
    """Raise CheckpointError if the tokenizer is another network's: words of its own lack a row.

    A word that was added to it may lack one: texts without that word can be answered.
    """
    highest = getattr(tokenizer, "vocab_size", 0)
    if num_rows and highest > num_rows:
        raise CheckpointError(
            f"{directory} has a tokenizer of {highest} tokens and a network with {num_rows} rows "
            "of embeddings; they do not belong together: copy both from one checkpoint"
        )


def _outputs(tokenizer: Any) -> list[str] | str:
    """Return the names of what the tokenizer makes of a text, or why it makes nothing of it."""
    try:
        return list(tokenizer("a"))
    except Exception as error:  # noqa: BLE001  each tokenizer raises its own
        return f"its {type(tokenizer).__name__} needs more than a text: {error}"


def _words(tokenizer: Any) -> list[str]:
    """Return a few tokens of the vocabulary as text; letters if none can be read."""
    size = len(tokenizer)
    spelled = (tokenizer.decode([each]).strip() for each in range(0, size, max(1, size // 64)))
    special = set(tokenizer.all_special_tokens)
    words = [word for word in spelled if word.isalnum() and word not in special]
    return words[-16:] if len(words) > 2 else ["a", "b", "c"]


def encoded_by(encode: Callable[[], EncodedT], texts: Sequence[TextInput]) -> EncodedT:
    """Return what `encode` makes of the texts. Raises UnusableInput for one that no tokenizer takes."""
    try:
        return encode()
    except (TypeError, UnicodeEncodeError):
        _check_characters(texts)
        raise


def _check_characters(texts: Sequence[TextInput]) -> None:
    """Raise UnusableInput for half of a surrogate pair, which JSON can hold and tokenizers cannot."""
    for index, item in enumerate(texts):
        try:
            (item.text + (item.text_pair or "")).encode()
        except UnicodeEncodeError as error:
            raise UnusableInput(index, "the text holds half of a character; send valid Unicode") from error


def text_of(index: int, item: Input) -> TextInput:
    """Return the input as a text. Raises UnusableInput."""
    if not isinstance(item, TextInput):
        raise UnusableInput(index, "this model classifies text; send a string")
    return item
