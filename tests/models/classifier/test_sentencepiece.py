"""A file of SentencePiece is read without its package, and what cannot be read names the package it needs."""

import json
import math

import pytest
from transformers import AutoTokenizer
from transformers.utils import is_sentencepiece_available, sentencepiece_model_pb2_new

from fewshard_core.values import TextInput
from fewshard_models.classifier.tokenizer import TextPreprocessor
from fewshard_models.classifier.tokenizer_files import load_tokenizer
from fewshard_models.errors import CheckpointError
from tiny_checkpoints import make

PIECES = ["▁kalo", "▁mite", "▁ka", "lo", "▁mi", "te", "▁", *"kalomite"]


def write_spm(file):
    """Write a unigram model of a few pieces, as sentencepiece trains them."""
    proto = sentencepiece_model_pb2_new.ModelProto()
    kinds = [
        ("[PAD]", 3),
        ("[CLS]", 3),
        ("[SEP]", 3),
        ("[UNK]", 2),
        *[(piece, 1) for piece in dict.fromkeys(PIECES)],
    ]
    for index, (piece, kind) in enumerate(kinds):
        proto.pieces.add(piece=piece, score=0.0 if kind != 1 else -math.log(index), type=kind)
    proto.trainer_spec.model_type = 1
    proto.trainer_spec.unk_id, proto.trainer_spec.pad_id = 3, 0
    proto.normalizer_spec.name = "identity"
    file.write_bytes(proto.SerializeToString())


@pytest.fixture
def directory(tmp_path):
    """A directory as DeBERTa-v3's: a model file and a few options."""
    write_spm(tmp_path / "spm.model")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "deberta-v2"}))
    options = {"tokenizer_class": "DebertaV2Tokenizer", "do_lower_case": False, "vocab_type": "spm"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    return tmp_path


def test_a_model_file_is_enough(directory):
    (item,) = TextPreprocessor(directory, 64).items([TextInput("kalo mite")], True)
    tokens = load_tokenizer(directory).convert_ids_to_tokens(item.features.ids)
    assert tokens == ["[CLS]", "▁kalo", "▁mite", "[SEP]"]


@pytest.mark.skipif(is_sentencepiece_available(), reason="transformers reads the file itself")
def test_transformers_alone_asks_for_another_package(directory):
    """If this fails, transformers has mended it, and `tokenizer_files` can go without its own reader."""
    with pytest.raises(Exception, match="tiktoken"):
        AutoTokenizer.from_pretrained(directory)


def test_a_damaged_model_file_is_refused(directory):
    (directory / "spm.model").write_bytes(b"\xff\xfe not a model")
    with pytest.raises(CheckpointError, match="has no usable tokenizer"):
        load_tokenizer(directory)


@pytest.mark.skipif(is_sentencepiece_available(), reason="the package is installed")
def test_a_tokenizer_that_needs_the_package_says_so(tmp_path):
    write_spm(tmp_path / "spiece.model")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt-sw3"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPTSw3Tokenizer"}))
    with pytest.raises(CheckpointError, match="pip install sentencepiece"):
        load_tokenizer(tmp_path)


def test_a_directory_without_a_tokenizer_is_refused(tmp_path):
    make(tmp_path, "bert")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match="no usable tokenizer"):
        load_tokenizer(tmp_path)
