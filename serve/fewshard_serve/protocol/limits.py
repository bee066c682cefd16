"""How much one request may ask for; every parser of this package and the HTTP layer reads it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Anything above one of these is refused, mostly with `TooLarge`; the message names the field.

    `max_body_s`: from its first header on, a body may take so long to arrive.
    """

    max_body_bytes: int = 32 * 1024 * 1024
    max_items: int = 4096
    max_text_bytes: int = 1_000_000
    max_json_depth: int = 32
    max_image_pixels: int = 25_000_000
    max_body_s: float = 30.0
