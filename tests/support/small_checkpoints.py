"""Small random text and image classifiers with a tokenizer, and transformers' own answers to compare with."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from fewshard_models.classifier.load import load

WORDS = [
    *("sun", "rain", "wind", "snow", "warm", "cold", "north", "south", "day", "night"),
    *("a", "very", "mild", "and", "or", "of", "storm", "fog", "dew", "hail"),
]
TEXTS = ["sun", "cold wind and rain", "a very mild day of fog", "north or south wind and hail or snow or dew"]
LABELS = {"id2label": {0: "ant", 1: "bee", 2: "cow"}, "label2id": {"ant": 0, "bee": 1, "cow": 2}}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def write_tokenizer(directory: Path, **options: Any) -> int:
    """Write a WordPiece tokenizer with BERT's special tokens. Returns the size of its vocabulary."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    inner = Tokenizer(models.WordPiece({piece: id_ for id_, piece in enumerate(pieces)}, unk_token="[UNK]"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    tokens = {f"{key}_token": token for key, token in names.items()}
    tf.PreTrainedTokenizerFast(
        tokenizer_object=inner, **{"model_max_length": 64, **tokens, **options}
    ).save_pretrained(directory)
    return len(pieces)


def write_text(directory: Path, config_class: type = tf.BertConfig, **fields: Any) -> Path:
    """Write a text classifier with a tokenizer; its weights are large enough for errors to show."""
    positions = 66 if "oberta" in config_class.__name__ or "Camembert" in config_class.__name__ else 64
    config = config_class(
        **{"vocab_size": write_tokenizer(directory), "pad_token_id": 0, "max_position_embeddings": positions}
        | LABELS
        | SIZES
        | fields
    )
    return write_network(directory, tf.AutoModelForSequenceClassification, config)


def write_network(directory: Path, auto: Any, config: Any) -> Path:
    """Write a network with random weights far from zero."""
    torch.manual_seed(5)
    network = auto.from_config(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    network.save_pretrained(directory)
    return directory


def change_weights(directory: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Read the weights, change the dict in place, and write it again."""
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(
        {name: tensor.contiguous() for name, tensor in weights.items()},
        directory / "model.safetensors",
        {"format": "pt"},
    )


def change_config(directory: Path, name: str = "config.json", **fields: Any) -> None:
    """Set fields of config.json, or of another file of JSON."""
    file = directory / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def reference(directory: Path, texts: Sequence[str] = TEXTS, differ: bool = True) -> NDArray[np.float32]:
    """transformers' own logits, one text at a time without padding.

    differ: require that the texts are answered differently, since nothing is proven otherwise.
    """
    tokenizer = tf.AutoTokenizer.from_pretrained(directory)
    network = tf.AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.inference_mode():
        rows = [network(**tokenizer(text, return_tensors="pt")).logits[0].numpy() for text in texts]
    assert not differ or np.std(rows, axis=0).max() > 1e-3
    return np.array(rows)


def served(directory: Path, texts: Sequence[str] = TEXTS) -> NDArray[np.float32]:
    """Our logits, all texts in one batch."""
    model = load(directory, "cpu", "fp32")
    model.self_check()
    return model(texts).logits
