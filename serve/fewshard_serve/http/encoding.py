"""Content codings: decompresses request bodies within a limit, and compresses responses.

`request` and `asgi` call it.
"""

import zlib

from fewshard_serve.errors import MalformedRequest, TooLarge, UnsupportedMedia

MIN_COMPRESSED_BYTES = 1024
"""A smaller body is compressed only if the client accepts a single coding, as tritonclient does."""

_GZIP, _ZLIB, _RAW_DEFLATE = 31, 15, -15
_PACKED_BITS = {
    "gzip": _GZIP,
    "deflate": _ZLIB,
}  # "deflate" in HTTP means the zlib format (RFC 9110, 8.4.1.2)
_LEVEL = 4
_STEP = 64 * 1024
"""Bytes unpacked at a time, so that what follows a member is not copied whole for each member."""
MAX_MEMBERS = 1024
"""Enough for a body of `max_body_bytes` in the blocks of 64 KiB that bgzip writes."""


MAX_RATIO = 100
FREE_BYTES = 2**20
"""A body may unpack to so many bytes, or to `MAX_RATIO` times its size. Texts and numbers rarely reach a
ratio of ten; what exceeds a hundred costs its sender next to nothing."""


def max_unpacked(num_bytes: int, coding: str, max_bytes: int) -> int:
    """The most bytes that a packed body of `num_bytes` may unpack to."""
    if coding.strip().lower() in ("", "identity"):
        return 0
    return min(max_bytes, max(FREE_BYTES, MAX_RATIO * num_bytes))


def unpack(body: bytes, coding: str, max_bytes: int) -> bytes:
    """Decompress a request body. The result never exceeds `max_bytes`, nor `max_unpacked`.

    Raises `UnsupportedMedia` for an unsupported coding, `TooLarge` for a decompression bomb, and
    `MalformedRequest` if the body is damaged.
    """
    coding = coding.strip().lower()
    if coding in ("", "identity"):
        return body
    if coding not in ("gzip", "x-gzip", "deflate"):
        raise UnsupportedMedia(f"Content-Encoding {coding[:40]!r} is not spoken; send gzip, deflate or none")
    try:
        return _inflate(body, coding, max_unpacked(len(body), coding, max_bytes), max_bytes)
    except zlib.error as error:
        raise MalformedRequest(f"the body is not valid {coding}: {error}") from None


def _inflate(body: bytes, coding: str, most_bytes: int, max_bytes: int) -> bytes:
    """The plain bytes of all members of a gzip body (RFC 1952, 2.2), or of one deflate stream."""
    bits, most = (_deflate_bits(body), 1) if coding == "deflate" else (_GZIP, MAX_MEMBERS)
    parts: list[bytes] = []
    at, room = 0, most_bytes + 1
    for _ in range(most):
        unpacker = zlib.decompressobj(bits)
        while not unpacker.eof and at < len(body):
            piece = body[at : at + _STEP]
            parts.append(unpacker.decompress(piece, room))
            room -= len(parts[-1])
            if room == 0 and most_bytes == max_bytes:
                raise TooLarge(f"the body unpacks to over {max_bytes} bytes (max_body_bytes)")
            if room == 0:
                raise TooLarge(f"the body unpacks to over {MAX_RATIO} times its size; send it as it is")
            at += len(piece) - len(unpacker.unused_data)
        if not unpacker.eof:
            raise MalformedRequest(f"the body is not one complete {coding} stream")
        if at == len(body):
            return b"".join(parts)
    raise MalformedRequest(f"the body holds more than {most} {coding} streams; send fewer")


def pack(body: bytes, coding: str) -> bytes:
    """Compress the body with a coding that `choose_coding` returned."""
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _PACKED_BITS[coding])
    return packer.compress(body) + packer.flush()


def choose_coding(accepted: str | None, num_bytes: int) -> str | None:
    """The coding for a response of `num_bytes`, from the value of Accept-Encoding; None for no coding."""
    if not accepted or (num_bytes < MIN_COMPRESSED_BYTES and "," in accepted):
        return None
    weights = dict(map(_weight, accepted.lower().split(",")))
    best = max(_PACKED_BITS, key=lambda coding: weights.get(coding, weights.get("*", 0.0)))
    weight = weights.get(best, weights.get("*", 0.0))
    return best if weight > 0 and weight >= weights.get("identity", 0.0) else None


def _weight(entry: str) -> tuple[str, float]:
    coding, _, parameters = entry.partition(";")
    name, _, value = parameters.partition("=")
    if name.strip() != "q":
        return coding.strip(), 1.0
    try:
        return coding.strip(), float(value)
    except ValueError:
        return coding.strip(), 0.0


def _deflate_bits(body: bytes) -> int:
    """Some clients send raw deflate as "deflate". The check bits identify a zlib header (RFC 1950)."""
    is_zlib = len(body) > 1 and body[0] & 0x0F == 8 and int.from_bytes(body[:2]) % 31 == 0
    return _ZLIB if is_zlib else _RAW_DEFLATE
