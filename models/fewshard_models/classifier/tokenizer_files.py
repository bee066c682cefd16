"""Loads a checkpoint's own tokenizer. Called by `TextPreprocessor`.

This file does not import torch itself: a server tokenises in a process that runs no network.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import SentencePieceExtractor, import_protobuf
from transformers.utils import is_sentencepiece_available

from fewshard_models.errors import CheckpointError

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "*.model", "*.tiktoken")
CHARACTER_TOKENIZERS = ("CanineTokenizer", "PerceiverTokenizer", "ByT5Tokenizer")
"""Tokenizers of characters or bytes, which have no vocabulary file."""
PACKAGES = (
    "sentencepiece",
    "tiktoken",
    "sacremoses",
    "rjieba",
    "jieba",
    "fugashi",
    "mistral_common",
    "rhoknp",
)
"""Packages that tokenizers of transformers may need and this product does not."""


def load_tokenizer(directory: Path) -> Any:
    """Return the tokenizer. Raises CheckpointError with the file or the package that is missing."""
    tokenizer = _load(directory)
    # Without a vocabulary transformers silently creates an empty tokenizer.
    if type(tokenizer).__name__ not in CHARACTER_TOKENIZERS and not _has_vocabulary(directory):
        raise CheckpointError(
            f"{directory} has no usable tokenizer: none of {', '.join(TOKENIZER_FILES)} is there"
        )
    return tokenizer


def _has_vocabulary(directory: Path) -> bool:
    return any(any(directory.glob(name)) for name in TOKENIZER_FILES)


def _load(directory: Path) -> Any:
    try:
        with _sentencepiece_files_read():
            return AutoTokenizer.from_pretrained(directory, trust_remote_code=False, local_files_only=True)
    # transformers raises many kinds of errors; each means that these files are at fault
    except Exception as error:
        package = next((name for name in PACKAGES if re.search(rf"\b{name}\b", str(error), re.I)), None)
        remedy = f"; it needs a package that is not installed: pip install {package}" if package else ""
        raise CheckpointError(f"{directory} has no usable tokenizer: {error}{remedy}") from error


@contextmanager
def _sentencepiece_files_read() -> Iterator[None]:
    """Meanwhile, files of SentencePiece are converted without its package.

    transformers reads them with protobuf alone, but asks for the package all the same. Where it is missing,
    they are taken for files of tiktoken, and the error names that.
    """
    # transformers has a function of the module's name too, which hides it.
    conversion: Any = import_module("transformers.convert_slow_tokenizer")
    if not is_sentencepiece_available():
        conversion.SentencePieceExtractor = _Extractor
    try:
        yield
    finally:
        conversion.SentencePieceExtractor = SentencePieceExtractor


class _Extractor(SentencePieceExtractor):
    """Reads the pieces of a model file as its base class does, without asking for a package."""

    def __init__(self, model: str) -> None:
        self.proto = import_protobuf().ModelProto()
        self.proto.ParseFromString(Path(model).read_bytes())
