"""What a replica and the HAProxy before it tell each other: how much may be in flight, what was refused.

HAProxy refuses by itself what would find no room (`rayserve/haproxy`), at a fraction of what that costs
here. It sets the one header on every request and takes the other off every answer: no client sees them.
"""

import math
from collections.abc import Iterator

from fewshard_serve.http.service import RequestProtocol, Room

ROOM_HEADER = b"x-fewshard-room"
"""Of an answer: `<requests that may be in flight>/<whole seconds after which to come back>`."""
REFUSED_HEADER = b"x-fewshard-refused"
"""Of a request: how many were refused since the last one, one number for each of `PROTOCOLS`."""
PROTOCOLS: tuple[RequestProtocol, ...] = ("classify", "v2_json", "v2_binary")
"""Those whose refusals HAProxy can put into words."""
NONE = b"0/0/0"


def room_header(room: Room) -> tuple[bytes, bytes]:
    """What to tell now. A request has at least one item, so there is room for no more requests than items."""
    return ROOM_HEADER, b"%d/%d" % (room.limit_items, retry_after(room.retry_after_s()))


def refused_before(value: bytes | None) -> Iterator[RequestProtocol]:
    """The protocol of each request that HAProxy has refused, from the header's value."""
    if value in (None, NONE):
        return
    for protocol, count in zip(PROTOCOLS, value.split(b"/"), strict=False):
        yield from [protocol] * (int(count) if count.isdigit() else 0)


def retry_after(seconds: float) -> int:
    """The value of a Retry-After header: whole seconds, at least one."""
    return max(1, math.ceil(seconds))
