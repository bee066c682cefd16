"""Token ids are those of transformers' tokenizer, cut or not, from any thread, however long the text is."""

import pickle
import random
import sys
import threading
import time

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fewshard_core.values import EncodedImage, TextInput
from fewshard_models.checkpoint import ZOO
from fewshard_models.classifier.encoding import FastEncoder, encoder_of
from fewshard_models.classifier.tokenizer import TextPreprocessor
from fewshard_models.errors import UnusableInput

WORDS = "warm cold a very funny film, naïve; it's two-hour 1999 (dull) 日本 語 the! ... bad\nend".split(" ")  # noqa: SIM905
ROWS = 20


def text_of(seed, number):
    drawn = random.Random(seed)
    return "".join(drawn.choice(WORDS) + drawn.choice([" "] * 5 + ["  ", "\n", ""]) for _ in range(number))


def _bytes():
    """Pieces as GPT-2 splits them, of single bytes."""
    alphabet = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(alphabet, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return inner


def _unigram():
    pieces = [
        ("<unk>", 0.0),
        *[(piece, -1.0 - len(piece) % 3) for piece in ["▁", *map(chr, range(97, 123)), "il", "m▁"]],
    ]
    inner = Tokenizer(models.Unigram(pieces, 0, False))
    inner.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    return inner


def _whole_text():
    """No pieces: a text is one sequence, as for Llama 2."""
    inner = _unigram()
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.pre_tokenizer = None
    return inner


def tokenizer(name, **fields):
    if name == "zoo":
        return AutoTokenizer.from_pretrained(ZOO / "sst2-dense", **fields)
    inner = {"bytes": _bytes, "bare": _bytes, "unigram": _unigram, "whole": _whole_text}[name]()
    names = ["input_ids", "token_type_ids"]
    if name == "bare":
        return PreTrainedTokenizerFast(tokenizer_object=inner, model_input_names=names, **fields)
    inner.add_special_tokens(["<s>", "</s>"])
    ids = [(token, inner.token_to_id(token)) for token in ("<s>", "</s>")]
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=ids
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_input_names=names, **fields)


KINDS = ["zoo", "bytes", "unigram", "whole", "bare"]


def expected(reference, text, truncate):
    found = reference(text.text, text.text_pair, truncation=truncate, max_length=ROWS if truncate else None)
    return found["input_ids"], found["token_type_ids"]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("truncate", [True, False])
def test_ids_and_types_are_those_of_transformers(name, side, truncate):
    encoder = encoder_of(tokenizer(name, truncation_side=side), ROWS)
    reference = tokenizer(name, truncation_side=side)
    assert isinstance(encoder, FastEncoder)
    numbers = [0, 1, 3, 7, 12, 40]
    texts = [TextInput(text_of(number, number)) for number in numbers]
    texts += [TextInput(text_of(a, a), text_of(b + 1, b)) for a in numbers for b in numbers if b]
    found = encoder.encode(texts, truncate)
    assert [(each.ids, each.types) for each in found] == [
        expected(reference, text, truncate) for text in texts
    ]


@pytest.mark.parametrize("splits", [True, False])
def test_a_pickled_encoder_gives_the_same_ids(splits):
    encoder = encoder_of(tokenizer("zoo", split_special_tokens=splits), ROWS)
    reference = tokenizer("zoo", split_special_tokens=splits)
    copy = pickle.loads(pickle.dumps(encoder))
    text, pair = TextInput("a [SEP] warm [MASK] film"), TextInput("[CLS] " * 12, "dull " * 30)
    for truncate in (True, False):
        found = copy.encode([text, pair, text], truncate)
        assert [(each.ids, each.types) for each in found] == [
            expected(reference, each, truncate) for each in (text, pair, text)
        ]
    ids = expected(reference, text, False)[0]
    assert copy.tokens(ids) == reference.convert_ids_to_tokens(ids)


@pytest.mark.parametrize("name", KINDS)
def test_a_beginning_has_the_tokens_of_the_whole(name):
    encoder, reference = encoder_of(tokenizer(name), ROWS), tokenizer(name)
    for seed in range(20):
        text = TextInput(text_of(seed, 400))
        assert encoder.encode([text], True)[0].ids == expected(reference, text, True)[0]
        is_shortened = encoder.num_characters(text) < len(text.text)
        assert is_shortened == (name != "whole")


def test_a_text_without_words_is_read_whole():
    encoder = encoder_of(tokenizer("bytes"), ROWS)
    assert encoder.num_characters(TextInput("a" * 9000)) == 9000
    assert encoder.num_characters(TextInput("  ! " * 3000)) == 12000


def test_truncation_and_padding_of_a_training_run_are_forgotten():
    old = tokenizer("zoo")
    old.backend_tokenizer.enable_truncation(4)
    old.backend_tokenizer.enable_padding(length=40)
    assert (
        encoder_of(old, ROWS).encode([TextInput("a b c d e f")], False)[0].ids
        == tokenizer("zoo")("a b c d e f")["input_ids"]
    )


def test_threads_do_not_disturb_one_another():
    """One asks for texts that are cut, one for texts that are not, as callers of a server do."""
    preprocessor = TextPreprocessor(ZOO / "sst2-dense", 64)
    long, short = TextInput("fine " * 200), TextInput("a film")
    faults = []
    until = time.monotonic() + 1.0

    def cut():
        while time.monotonic() < until:
            lengths = [item.num_tokens for item in preprocessor.items([long, short], True)]
            faults.extend([lengths] if lengths != [64, 4] else [])

    def refused():
        while time.monotonic() < until:
            try:
                faults.append(preprocessor.items([long, short], False))
            except UnusableInput as error:
                faults.extend([] if "202 tokens, over the model's 64" in str(error) else [error])

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=each) for each in (cut, refused, cut)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not faults


def test_costs_are_of_what_is_tokenised_not_of_what_is_kept():
    preprocessor = TextPreprocessor(ZOO / "sst2-dense", 128)
    letters, film = TextInput("x" * 900_000), TextInput("a warm and funny film " * 40_000)
    pair = TextInput("a film", "b" * 3000)
    assert preprocessor.costs([letters, film, pair, EncodedImage(b"")]) == [900_001, 1029, 3007, 1]
    assert preprocessor.estimate([letters, film]) == 256


def test_a_text_far_too_long_is_refused_by_its_beginning(monkeypatch):
    preprocessor = TextPreprocessor(ZOO / "sst2-dense", 128)
    read = []
    whole = FastEncoder._encoded
    monkeypatch.setattr(
        FastEncoder, "_encoded", lambda self, texts: read.append(sum(map(len, texts))) or whole(self, texts)
    )
    with pytest.raises(UnusableInput, match="item 1: more than the model's 128 tokens; shorten it or set"):
        preprocessor.items([TextInput("a"), TextInput("a warm film " * 80_000)], False)
    assert sum(read) < 2000


def test_half_a_character_is_the_callers():
    preprocessor = TextPreprocessor(ZOO / "sst2-dense", 128)
    with pytest.raises(UnusableInput, match="item 1: the text holds half of a character"):
        preprocessor.items([TextInput("a"), TextInput("b", "c \ud83d")], True)
