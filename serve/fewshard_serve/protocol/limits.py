"""The limits of one request. All parsers of this package and the HTTP layer check them.

A request above a limit is refused, mostly with `TooLarge`; the message names the field.
"""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le

from fewshard_serve.settings import NO_OTHER_KEYS, STRICT, Positive, PositiveInt


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one request may hold, and how long it may take to arrive."""

    __pydantic_config__ = NO_OTHER_KEYS

    max_body_bytes: PositiveInt = 32 * 2**20
    """The size of the body, also after decompression."""
    max_items: PositiveInt = 4096
    max_text_bytes: PositiveInt = 1_000_000
    max_json_depth: Annotated[int, STRICT, Ge(4), Le(200)] = 32
    max_image_pixels: PositiveInt = 25_000_000
    max_body_s: Positive = 30.0
    """How long a body may take to arrive after the headers, in seconds."""
    max_retried_bytes: Annotated[int, STRICT, Ge(32 * 2**10), Le(4 * 2**20)] = 64 * 2**10
    """The largest request, headers included, that is sent to another replica when its own dies."""
