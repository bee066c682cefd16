"""What a replica and the HAProxy before it tell each other: how much may be in flight, what was refused.

HAProxy refuses by itself what would find no room (`rayserve/haproxy`), at a fraction of what that costs
here. It sets the one header on every request and takes the other off every answer: no client sees them.
"""

from collections.abc import Iterator, Sequence

from fewshard_serve.http.responses import retry_after
from fewshard_serve.http.service import Room

ROOM_HEADER = b"x-fewshard-room"
"""Of an answer: `<requests that may be in flight>/<whole seconds after which to come back>`."""
REFUSED_HEADER = b"x-fewshard-refused"
"""Of a request: how many were refused since the last one, one number for each of the protocols that HAProxy
may refuse (`routes.sheddable_requests`), with a slash between them."""


def room_header(room: Room) -> tuple[bytes, bytes]:
    """What to tell now. A request has at least one item, so there is room for no more requests than items."""
    return ROOM_HEADER, b"%d/%d" % (room.limit_items, retry_after(room.retry_after_s()))


def refused_before(value: bytes | None, protocols: Sequence[str]) -> Iterator[str]:
    """The protocol of each request that HAProxy has refused, from the header's value."""
    if value is None or not value.strip(b"0/"):
        return
    for protocol, count in zip(protocols, value.split(b"/"), strict=False):
        yield from [protocol] * (int(count) if count.isdigit() else 0)
