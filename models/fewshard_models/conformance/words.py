"""A tokenizer of a few made-up words, and texts of them. Used by the comparisons of texts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CanineTokenizer,
    LayoutLMv3Tokenizer,
    LukeTokenizer,
    MarkupLMTokenizer,
    PerceiverTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    RoCBertTokenizer,
    TapasTokenizer,
)

SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
WORDS = [f"w{number}" for number in range(40)]
VOCABULARY = [*SPECIAL_TOKENS, *WORDS]
_NUM_ROWS = len(VOCABULARY) + 3
"""A few rows more than words, as networks often have; some stand for images."""


def num_rows(model_type: str) -> int:
    """Return the size of the vocabulary of a network whose tokenizer `save_tokenizer` writes."""
    return _ROWS.get(model_type, _NUM_ROWS)


def words(number: int, first: int = 0) -> str:
    """Return a text of this many words."""
    return " ".join(WORDS[(first + 7 * each) % len(WORDS)] for each in range(number))


SHORT = [words(number, 3 * number) for number in (1, 2, 3, 5, 8, 9, 10, 11, 14, 17, 23)]
PAIRS = [(words(2), words(3, 5)), (words(7, 1), words(1, 2)), (words(4, 9), words(12, 3))]

_FRAMES = {
    "xlnet": ("$A </s> <s>", "$A </s> $B </s> <s>"),
    "t5": ("$A </s>", "$A </s> $B </s>"),
    "decoder": ("<s> $A", "<s> $A $B:1"),
    "encoder": ("<s> $A </s>", "<s> $A </s> $B:1 </s>:1"),
    "bart": ("<s> $A </s>", "<s> $A </s> </s> $B </s>"),
}


def frame_of(config: Any) -> str:
    """Return which special tokens a tokenizer of this type adds, and where."""
    if config.model_type == "xlnet":
        return "xlnet"
    if config.is_encoder_decoder:
        return "t5" if "t5" in config.model_type else "bart"
    return "encoder" if config.model_type in _ENCODERS or hasattr(config, "type_vocab_size") else "decoder"


def save_tokenizer(
    directory: Path, model_type: str, frame: str, num_types: int, max_tokens: int | None
) -> Any:
    """Write a tokenizer of `WORDS` with the special tokens of a `frame`; the own one of a few types.

    max_tokens: the limit that it states; None for none.
    """
    tokenizer = _OWN[model_type](directory) if model_type in _OWN else _of_words(frame, num_types, max_tokens)
    tokenizer.save_pretrained(directory)
    return tokenizer


def _of_words(frame: str, num_types: int, max_tokens: int | None) -> Any:
    inner = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(VOCABULARY)}, unk_token="<unk>")
    )
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    single, pair = _FRAMES[frame]
    inner.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = (
        ["input_ids", "token_type_ids", "attention_mask"]
        if num_types > 1
        else ["input_ids", "attention_mask"]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        mask_token="<mask>",
        padding_side="left" if frame == "xlnet" else "right",
        model_input_names=names,
        model_max_length=max_tokens,
    )


_ENCODERS = (
    "distilbert",
    "deberta",
    "deberta-v2",
    "mpnet",
    "esm",
    "modernbert",
    "eurobert",
    "xlm",
    "flaubert",
)


_BYTES = {
    letter: index
    for index, letter in enumerate([*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())])
}


def _qwen(directory: Path) -> Any:
    """Return a tokenizer of bytes: transformers makes Qwen's of what the file holds, whatever its class."""
    return Qwen2Tokenizer(vocab=_BYTES, merges=[], pad_token="<pad>", unk_token="<unk>", eos_token="</s>")


def _luke(directory: Path) -> Any:
    entities = {name: index for index, name in enumerate(("[PAD]", "[UNK]", "[MASK]", "[MASK2]"))}
    return LukeTokenizer(vocab=_BYTES, merges=[], entity_vocab=entities)


def _markuplm(directory: Path) -> Any:
    return MarkupLMTokenizer({"a": 0}, vocab=_BYTES, merges=[])


def _layoutlmv3(directory: Path) -> Any:
    return LayoutLMv3Tokenizer(vocab=_BYTES, merges=[])


def _of_file(kind: Any, directory: Path, *tables: str) -> Any:
    """Return a tokenizer that reads a list of words, and tables of numbers of them."""
    pieces = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]", "[EMPTY]", *WORDS]
    (directory / "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")
    for table in tables:
        numbers = {piece: index % 7 for index, piece in enumerate(pieces)}
        (directory / table).write_text(json.dumps(numbers), encoding="utf-8")
    return kind(*(str(directory / name) for name in ("vocab.txt", *tables)))


_OWN: dict[str, Callable[[Path], Any]] = {
    "canine": lambda directory: CanineTokenizer(),
    "layoutlmv3": _layoutlmv3,
    "luke": _luke,
    "markuplm": _markuplm,
    "perceiver": lambda directory: PerceiverTokenizer(),
    "qwen2": _qwen,
    "qwen3_5": _qwen,
    "roc_bert": lambda directory: _of_file(
        RoCBertTokenizer, directory, "word_shape.json", "word_pronunciation.json"
    ),
    "tapas": lambda directory: _of_file(TapasTokenizer, directory),
}
"""The tokenizers that come with these types, where another one would hide what they need."""
_ROWS = {"perceiver": 262, **dict.fromkeys(("layoutlmv3", "luke", "markuplm", "qwen2", "qwen3_5"), 264)}
