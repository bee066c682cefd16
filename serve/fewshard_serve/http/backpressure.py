"""The two headers by which a replica and HAProxy in front of it exchange the admission limit and refusals.

HAProxy refuses requests above the limit itself (`rayserve/haproxy`), at a fraction of the cost of a refusal
here. It sets or removes one header of every request and removes the other from every answer, so clients see
neither.
"""

from collections.abc import Iterator, Sequence

from fewshard_serve.http.responses import retry_after
from fewshard_serve.http.service import Room

ROOM_HEADER = b"x-fewshard-room"
"""In an answer: `<limit of requests in flight>/<seconds for Retry-After>/<1 for a valid token, else 0>`."""
REFUSED_HEADER = b"x-fewshard-refused"
"""In a request: the numbers of requests that HAProxy has refused since the last one it passed on.

There is one number for each kind of request in the order of `routes.sheddable_requests`, separated by
slashes. Where nothing was refused there is no header.
"""


def room_header(room: Room, has_token: bool) -> tuple[bytes, bytes]:
    """The header with the current limit. Each request has at least one item, so it limits requests too.

    has_token: whether the caller is a token's holder, and so a caller of its own wherever it comes from.
    """
    return ROOM_HEADER, b"%d/%d/%d" % (room.limit_items, retry_after(room.retry_after_s()), has_token)


def refused_before(value: bytes | None, protocols: Sequence[str]) -> Iterator[str]:
    """Yield the protocol of each request that HAProxy has refused, from the header's value."""
    if value is None or not value.strip(b"0/"):
        return
    for protocol, count in zip(protocols, value.split(b"/"), strict=False):
        yield from [protocol] * (int(count) if count.isdigit() else 0)
