"""Lets web pages of other origins call the server, by the section `cors` of the configuration.

https://fetch.spec.whatwg.org/#http-cors-protocol. `middleware` holds the settings, and `asgi` calls it.
"""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import MinLen

from fewshard_serve.http.request import Request
from fewshard_serve.http.responses import Headers, Response
from fewshard_serve.settings import NO_OTHER_KEYS, Rules

ANY = "*"
KEEP_S = 600
"""How long a browser may remember the answer to a preflight request."""

Origin = Annotated[str, Rules(pattern=r"^(\*|https?://[^/\s*]+)$")]


@dataclass(frozen=True, slots=True)
class CorsSettings:
    """Which web pages may call the server from a browser; without this section those of the server alone."""

    __pydantic_config__ = NO_OTHER_KEYS

    origins: Annotated[tuple[Origin, ...], MinLen(1)]
    """The origins of the pages, such as https://app.example; "*" for every page."""

    def allows(self, origin: str | None) -> bool:
        return origin is not None and (ANY in self.origins or origin in self.origins)


def preflight(settings: CorsSettings | None, request: Request) -> Response | None:
    """The answer to a browser that asks before it sends a page's request; None for every other request.

    Browsers send no token with it.
    """
    wanted = request.header(b"access-control-request-method")
    if settings is None or request.method != "OPTIONS" or wanted is None:
        return None
    if not settings.allows(request.header(b"origin")):
        return None
    headers = request.headers.get(b"access-control-request-headers", b"")
    return Response(
        b"",
        headers=(
            (b"access-control-allow-methods", b"GET, HEAD, POST"),
            (b"access-control-allow-headers", headers),
            (b"access-control-max-age", b"%d" % KEEP_S),
        ),
    )


def headers(settings: CorsSettings | None, request: Request) -> Headers:
    """The headers that let the page of a request read its answer; none for other requests."""
    if settings is None:
        return ()
    if not settings.allows(request.header(b"origin")):
        return ((b"vary", b"origin"),)
    return (
        (b"access-control-allow-origin", request.headers[b"origin"]),
        (b"access-control-expose-headers", b"*"),
        (b"vary", b"origin"),
    )
