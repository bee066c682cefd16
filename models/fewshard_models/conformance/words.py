"""A tokenizer of a few made-up words, and texts of them. Used by the comparisons of texts."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CanineTokenizer, PerceiverTokenizer, PreTrainedTokenizerFast

SPECIAL_TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
WORDS = [f"w{number}" for number in range(40)]
VOCABULARY = [*SPECIAL_TOKENS, *WORDS]
VOCAB_SIZE = len(VOCABULARY) + 3
"""A few rows more than words, as networks often have; some stand for images."""


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


def save_tokenizer(directory: Path, model_type: str, frame: str, num_types: int) -> Any:
    """Write a tokenizer of `WORDS` with the special tokens of a `frame`; the own one of a few types."""
    tokenizer = _OWN[model_type]() if model_type in _OWN else _of_words(frame, num_types)
    tokenizer.save_pretrained(directory)
    return tokenizer


def _of_words(frame: str, num_types: int) -> Any:
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
_OWN: dict[str, Any] = {"canine": CanineTokenizer, "perceiver": PerceiverTokenizer}
