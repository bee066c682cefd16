"""The two headers by which a replica and HAProxy in front of it exchange the admission limit and refusals.

HAProxy refuses requests above the limit itself (`rayserve/haproxy`), at a fraction of the cost of a refusal
here. It sets one header on every request and removes the other from every answer, so clients see neither.
"""

from collections.abc import Iterator, Sequence

from fewshard_serve.http.responses import retry_after
from fewshard_serve.http.service import Room

ROOM_HEADER = b"x-fewshard-room"
"""In an answer: `<limit of requests in flight>/<seconds for Retry-After, a whole number>`."""
REFUSED_HEADER = b"x-fewshard-refused"
"""In a request: the numbers of requests that HAProxy has refused since the last one it passed on.

There is one number for each protocol in the order of `routes.sheddable_requests`, separated by slashes.
"""


def room_header(room: Room) -> tuple[bytes, bytes]:
    """The header with the current limit. Each request has at least one item, so it limits requests too."""
    return ROOM_HEADER, b"%d/%d" % (room.limit_items, retry_after(room.retry_after_s()))


def refused_before(value: bytes | None, protocols: Sequence[str]) -> Iterator[str]:
    """Yield the protocol of each request that HAProxy has refused, from the header's value."""
    if value is None or not value.strip(b"0/"):
        return
    for protocol, count in zip(protocols, value.split(b"/"), strict=False):
        yield from [protocol] * (int(count) if count.isdigit() else 0)
