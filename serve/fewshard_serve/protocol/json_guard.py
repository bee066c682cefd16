"""Guards against hostile JSON, and words error messages about requests; all protocols use it."""

import difflib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import from_json

from fewshard_serve.errors import MalformedRequest, TooLarge

MAX_CONTAINERS = 1_000_000
"""The most lists and objects in one body. An empty list takes 2 bytes of JSON but 56 bytes of memory."""

LARGE_BYTES = 256 * 1024
"""Counting a letter in so many bytes takes a quarter of a millisecond."""

MAX_VALUES = 4_000_000
"""The most values in the JSON of one V2 request. More values should be sent as a binary tensor."""

_ALL_BUT_STRUCTURE = bytes(set(range(256)) - set(b'[]{},"'))
_STEP = np.zeros(256, dtype=np.int8)
_STEP[list(b"[{")] = 1
_STEP[list(b"]}")] = -1


def read_json(body: bytes, max_depth: int, max_values: int = MAX_VALUES) -> Any:
    """Parse a JSON body. Raises `MalformedRequest`, or `TooLarge` as `check_structure` does."""
    check_structure(body, max_depth, max_values)
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise MalformedRequest(f"the body is not JSON: {error}; send UTF-8 JSON") from None


def check_structure(body: bytes, max_depth: int, max_values: int) -> None:
    """Raise `TooLarge` for a hostile body before it is parsed. A usual body costs three byte counts."""
    num_openings = _count(body, b"[") + _count(body, b"{")
    if num_openings <= max_depth and _count(body, b",") < max_values:
        return
    structure = _outside_strings(body)
    steps = _STEP[structure]
    if np.count_nonzero(structure == ord(",")) >= max_values:
        raise TooLarge(f"the JSON holds over {max_values} values; split the request or send binary tensors")
    if np.count_nonzero(steps == 1) > MAX_CONTAINERS:
        raise TooLarge(f"the JSON holds over {MAX_CONTAINERS} lists and objects; send data flat or binary")
    if np.cumsum(steps, dtype=np.int32).max(initial=0) > max_depth:
        raise TooLarge(f"the JSON nests deeper than {max_depth} levels (max_json_depth)")


def _count(body: bytes, letter: bytes) -> int:
    """How often the letter occurs. On a large body numpy counts, during which other threads may run."""
    if len(body) < LARGE_BYTES:
        return body.count(letter)
    return int(np.count_nonzero(np.frombuffer(body, dtype=np.uint8) == letter[0]))


def _outside_strings(body: bytes) -> NDArray[np.uint8]:
    """The brackets, braces and commas of a JSON text outside its strings, as byte values."""
    unescaped = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    structure = np.frombuffer(unescaped.translate(None, _ALL_BUT_STRUCTURE), dtype=np.uint8)
    is_inside = np.bitwise_xor.accumulate(structure == ord('"'))
    return structure[~is_inside]


def quoted(name: object) -> str:
    """A caller's value for an error message, shortened because it may be megabytes long."""
    text = repr(name)
    return text if len(text) <= 80 else f"{text[:77]}..."


def nearest(word: str, known: Iterable[str]) -> str:
    """ "did you mean 'x'?", or the list of known words if none is similar."""
    known = sorted(known)
    near = difflib.get_close_matches(word[:80], known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(known)}"
