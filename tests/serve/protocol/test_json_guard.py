"""Guards in front of the JSON parsers: what is refused before it is built, and how errors name things."""

import pytest

from fewshard_serve.errors import MalformedRequest, TooLarge
from fewshard_serve.protocol.json_guard import check_structure, nearest, quoted, read_json


def test_reads_json() -> None:
    assert read_json(b'{"a": [1, 2.5, "x", null, true]}', 4) == {"a": [1, 2.5, "x", None, True]}


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[1] 2", b"[NaN]", b"[Infinity]", b'"\xff"', b'"\\ud800"', b"9" * 5000]
)
def test_what_is_not_json_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedRequest, match="not JSON"):
        read_json(body, 8)


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_depth_is_limited_before_parsing(opening: bytes) -> None:
    assert read_json(b"[" * 8 + b"]" * 8, 8) is not None
    with pytest.raises(TooLarge, match="max_json_depth"):
        check_structure(opening * 9, 8, 100)
    with pytest.raises(TooLarge, match="max_json_depth"):
        check_structure(opening * 1_000_000, 8, 100)


@pytest.mark.parametrize(
    "text", [b"[" * 50, b'\\"' + b"[" * 50, b"\\\\", b'\\\\\\"' + b"{" * 50, b"," * 500, b"]" * 50]
)
def test_brackets_and_commas_inside_strings_do_not_count(text: bytes) -> None:
    check_structure(b'{"inputs":"' + text + b'"}', 3, 10)


@pytest.mark.parametrize("string", [b'"\\\\"', b'"\\\\\\""', b'""', b'"a"'])
def test_a_string_that_ends_does_not_hide_what_follows(string: bytes) -> None:
    with pytest.raises(TooLarge):
        check_structure(b"[" + string + b"," + b"[" * 20, 8, 100)


def test_many_values_are_refused_and_siblings_are_not_depth() -> None:
    check_structure(b"[" + b"[]," * 500 + b"[]]", 2, 1000)
    with pytest.raises(TooLarge, match="1000 values"):
        check_structure(b"[" + b"1," * 1000 + b"1]", 2, 1000)
    with pytest.raises(TooLarge, match="lists and objects"):
        check_structure(b"[" + b"[]," * 1_000_001 + b"[]]", 2, 10_000_000)


def test_words_in_messages_are_short_and_helpful() -> None:
    assert len(quoted("x" * 10_000)) == 80
    assert nearest("topk", ["top_k", "inputs"]) == "did you mean 'top_k'?"
    assert nearest("zzz", ["b", "a"]) == "known are: a, b"
