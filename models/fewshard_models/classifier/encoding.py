"""Turns texts into token ids with a checkpoint's tokenizer, from several threads at once.

Both classes give what transformers' tokenizer gives for `truncation="longest_first"`. Called by
`TextPreprocessor`.
"""

import json
import re
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from tokenizers import Encoding, Tokenizer, models

from fewshard_core.values import TextInput, TokenIds

CHARACTERS_PER_TOKEN = 8
"""A beginning of a text that has this many characters for each token that is kept is tried first."""
LIKELY_CHARACTERS_PER_TOKEN = 3
"""A text with fewer characters for each token of the limit is taken to fit; most languages have more."""
MAX_BOUNDARIES = 64
"""Spaces that are looked at for a boundary, before the whole text is taken."""
_LOCK = threading.Lock()


def encoder_of(tokenizer: Any, max_tokens: int) -> "FastEncoder | PlainEncoder":
    """Return an encoder that cuts at `max_tokens`, for a tokenizer of transformers."""
    from transformers import PreTrainedTokenizerFast

    kind = type(tokenizer)
    is_ordinary = (
        isinstance(tokenizer, PreTrainedTokenizerFast)
        and kind._encode_plus is PreTrainedTokenizerFast._encode_plus
        and kind.__call__ is PreTrainedTokenizerFast.__call__
    )
    return FastEncoder(tokenizer, max_tokens) if is_ordinary else PlainEncoder(tokenizer, max_tokens)


class FastEncoder:
    """Calls the Rust tokenizer, whose state it never changes. It can be pickled, and needs no transformers.

    transformers sets truncation on the tokenizer that all threads share, before each call. Here a text that
    is likely to fit is encoded whole. Another one is encoded without special tokens; then another tokenizer,
    which has the same post-processor and no vocabulary, truncates and adds them.
    """

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        # A tokenizer.json may hold both, of a training run.
        self._backend.no_truncation()
        self._backend.no_padding()
        self._splits_special = self._backend.encode_special_tokens = tokenizer.split_special_tokens
        self._max_tokens = max_tokens
        self._has_types = "token_type_ids" in tokenizer.model_input_names
        self._cut = _finisher(self._backend)
        self._cut.enable_truncation(max_tokens, strategy="longest_first", direction=tokenizer.truncation_side)
        self._can_begin = tokenizer.truncation_side == "right" and _splits_at_spaces(self._backend)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # The Rust object forgets this when it is pickled.
        self._backend.encode_special_tokens = self._splits_special

    def encode(self, texts: Sequence[TextInput], truncate: bool) -> list[TokenIds]:
        """Return the token ids of each text or pair."""
        if not truncate:
            return self._whole(texts)
        likely = [row for row, item in enumerate(texts) if self._is_likely_to_fit(item)]
        found = dict(zip(likely, self._whole([texts[row] for row in likely]), strict=True))
        rows = [row for row in range(len(texts)) if row not in found or self._is_too_long(found[row])]
        others = self._as_far_as_kept([texts[row] for row in rows]) if rows else ()
        for row, each in zip(rows, others, strict=True):
            found[row] = self._ids(self._cut.post_process(*each, True))
        return [found[row] for row in range(len(texts))]

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Return the token of each id."""
        found: list[Any] = [self._backend.id_to_token(each) for each in ids]
        return found

    def num_characters(self, item: TextInput) -> int:
        """Return how many characters are tokenised at first, if the text is cut."""
        first, second = sorted((item.text, item.text_pair or ""), key=len)
        begun = next(self._beginnings(second))
        return len(first) + (begun if begun >= len(first) else len(second))

    def exceeds(self, item: TextInput) -> bool:
        """Return whether a beginning of a text shows already that it has more than `max_tokens` tokens."""
        longest = max(item.text, item.text_pair or "", key=len)
        (begun,) = self._begun([longest], [self._max_tokens + 1])
        return len(begun) > self._max_tokens

    def _is_likely_to_fit(self, item: TextInput) -> bool:
        return len(item.text) + len(item.text_pair or "") <= LIKELY_CHARACTERS_PER_TOKEN * self._max_tokens

    def _is_too_long(self, found: TokenIds) -> bool:
        return len(found.ids) > self._max_tokens

    def _whole(self, texts: Sequence[TextInput]) -> list[TokenIds]:
        """Return all ids of each text or pair, with special tokens."""
        given = [item.text if item.text_pair is None else (item.text, item.text_pair) for item in texts]
        return [self._ids(each) for each in self._backend.encode_batch_fast(given)]

    def _as_far_as_kept(self, texts: Sequence[TextInput]) -> Iterator[tuple[Encoding, Encoding | None]]:
        """Yield tokens of texts and pairs, of which enough to cut them as if they were whole.

        Of a pair the longer text is cut first, so the shorter one is tokenised whole, and of the longer one
        more than that.
        """
        short = [item for item in texts if item.text_pair is None]
        singles = iter(self._begun([item.text for item in short], [self._max_tokens] * len(short)))
        pairs = [item for item in texts if item.text_pair is not None]
        ordered = [sorted((item.text, item.text_pair or ""), key=len) for item in pairs]
        others = self._encoded([less for less, _ in ordered])
        enough = [max(self._max_tokens, len(other) + 1) for other in others]
        both = iter(
            zip(pairs, ordered, others, self._begun([more for _, more in ordered], enough), strict=True)
        )
        for item in texts:
            if item.text_pair is None:
                yield next(singles), None
            else:
                pair, (less, _), other, begun = next(both)
                yield (other, begun) if pair.text is less else (begun, other)

    def _ids(self, encoding: Encoding) -> TokenIds:
        if not self._has_types:
            return TokenIds(encoding.ids, None)
        if self._backend.post_processor is None:
            # Then only the original knows the second text of a pair.
            return TokenIds(encoding.ids, [segment or 0 for segment in encoding.sequence_ids])
        return TokenIds(encoding.ids, encoding.type_ids)

    def _begun(self, texts: list[str], enough: list[int]) -> list[Encoding]:
        """Return the tokens of each text, or at least the first `enough` of them."""
        ends = [self._beginnings(text) for text in texts]
        found = self._encoded([text[: next(end)] for text, end in zip(texts, ends, strict=True)])
        for row, end in enumerate(ends):
            for length in end:
                if len(found[row]) >= enough[row]:
                    break
                found[row] = self._encoded([texts[row][:length]])[0]
        return found

    def _encoded(self, texts: list[str]) -> list[Encoding]:
        return list(self._backend.encode_batch_fast(texts, add_special_tokens=False))

    def _beginnings(self, text: str) -> Iterator[int]:
        """Yield the ends of growing beginnings whose tokens are the text's first tokens; then its own."""
        tried = CHARACTERS_PER_TOKEN * self._max_tokens
        while self._can_begin and tried < len(text):
            end = _boundary(text, tried)
            if end:
                yield end
            tried *= 8
        yield len(text)


class PlainEncoder:
    """Calls a tokenizer of transformers as it is: one in Python, or one that does more than usual."""

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._has_types = "token_type_ids" in tokenizer.model_input_names

    def encode(self, texts: Sequence[TextInput], truncate: bool) -> list[TokenIds]:
        """Return the token ids of each text or pair, one thread at a time."""
        with _LOCK:
            return [self._ids(item, truncate) for item in texts]

    def num_characters(self, item: TextInput) -> int:
        """Return the length of the text or pair: all of it is tokenised."""
        return len(item.text) + len(item.text_pair or "")

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Return the token of each id."""
        return list(self._tokenizer.convert_ids_to_tokens(list(ids)))

    def exceeds(self, item: TextInput) -> bool:
        """Return False: only the whole text shows it."""
        return False

    def _ids(self, item: TextInput, truncate: bool) -> TokenIds:
        found = self._tokenizer(
            item.text,
            item.text_pair,
            truncation=truncate,
            max_length=self._max_tokens if truncate else None,
            return_attention_mask=False,
            return_token_type_ids=self._has_types,
        )
        return TokenIds(list(found["input_ids"]), list(found["token_type_ids"]) if self._has_types else None)


def _finisher(backend: Tokenizer) -> Tokenizer:
    """Return a tokenizer without vocabulary that truncates and adds special tokens as `backend` does."""
    finisher = Tokenizer(models.WordLevel({"": 0}, unk_token=""))
    if backend.post_processor is not None:
        finisher.post_processor = backend.post_processor
    return finisher


def _boundary(text: str, start: int) -> int:
    """Return where a word ends, after `start`, before one space and another word; 0 if not found soon."""
    place = start
    for _ in range(MAX_BOUNDARIES):
        place = text.find(" ", place + 1)
        if place < 0:
            return 0
        if text[place - 1].isalnum() and text[place + 1 : place + 2].isalnum():
            return place
    return 0


_LOCAL_NORMALIZERS = {
    "BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Prepend", "Precompiled", "Replace",
    "Strip", "StripAccents", "ByteLevel",
}  # fmt: skip
_LOCAL_PATTERNS = (" {2,}", r"\s+", r"[\n\r\t]", "`{2}", "''")


def _splits_at_spaces(backend: Tokenizer) -> bool:
    """Return whether words are tokenised one by one, so that a beginning has the same tokens."""
    added = [str(token) for token in backend.get_added_tokens_decoder().values()]
    if any(re.search(r"\w\s+\w", token) for token in added):
        return False
    return _is_local(backend.normalizer) and _splits_words(backend)


def _is_local(normalizer: Any) -> bool:
    """Return whether the normaliser changes a word without looking at the next one."""
    if normalizer is None:
        return True
    state = json.loads(normalizer.__getstate__())
    for step in state["normalizers"] if state["type"] == "Sequence" else [state]:
        if step["type"] not in _LOCAL_NORMALIZERS:
            return False
        pattern = step.get("pattern", {})
        if pattern.get("Regex", _LOCAL_PATTERNS[0]) not in _LOCAL_PATTERNS:
            return False
        if re.search(r"\w\s+\w", pattern.get("String", "")):
            return False
    return True


def _splits_words(backend: Tokenizer) -> bool:
    """Return whether no piece that is tokenised by itself holds the end of one word and more."""
    if backend.pre_tokenizer is None:
        return False
    words = ["ab", "cd", "12", "ef", "34", "gh"]
    text = " ".join(words)
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    pieces = [piece.lower().lstrip(" ▁ġ") for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
    return all(any(piece in word for word in words) for piece in pieces)
