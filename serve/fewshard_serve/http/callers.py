"""Where requests come from: a caller's address behind trusted proxies, and whether another site's page asks.

`middleware` calls it, by the section `callers` of the configuration.

A browser sends requests for every page that its user visits, with the access that the user's machine has. A
server that asks for a token is safe, since no page of another site knows it. One that does not refuses pages
by two rules. Browsers say from which site a request comes (https://www.w3.org/TR/fetch-metadata,
https://fetch.spec.whatwg.org/#origin-header). And a page whose own name is made to resolve to this machine's
address ("DNS rebinding") counts as the same site, but its requests bear its name in the Host header.
"""

import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Annotated

from fewshard_serve.errors import Forbidden
from fewshard_serve.http.cors import ANY, CorsSettings
from fewshard_serve.http.request import Request
from fewshard_serve.settings import NO_OTHER_KEYS, Check, Rules

MAX_SHOWN = 100
"""Characters of a header that a message repeats."""
MAX_REMEMBERED = 64
FORWARDED_FOR = b"x-forwarded-for"
BROWSER = b"Mozilla/"
"""Every browser's User-Agent begins so. What it reads from its own site has no other mark over HTTP."""


def _network(text: str) -> str:
    network = ip_network(text)  # its ValueError says what is wrong
    if network.prefixlen == 0:
        raise ValueError(f"{text} trusts everybody, who could then choose an address; name your proxies")
    return text


HostName = Annotated[str, Rules(pattern=r"^(\*|[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)$")]
Network = Annotated[str, Check(_network)]


@dataclass(frozen=True, slots=True)
class CallersSettings:
    """Where requests may come from."""

    __pydantic_config__ = NO_OTHER_KEYS

    hosts: tuple[HostName, ...] = ()
    """The names under which browsers reach the server, such as models.example.com; "*" for every name."""
    trusted_proxies: tuple[Network, ...] = ()
    """The networks of proxies whose X-Forwarded-For is believed, such as 10.0.0.0/8."""


class TrustedProxies:
    """Finds the address of a caller behind proxies."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [ip_network(network) for network in networks]

    def __bool__(self) -> bool:
        return bool(self._networks)

    def caller_behind(self, peer: str, forwarded: Sequence[str]) -> str:
        """The address of the nearest hop that is no trusted proxy.

        peer: the address of the connection's other end.
        forwarded: the values of the request's X-Forwarded-For headers, in order.

        A hop that is no address ends the search, because whoever wrote it can be believed no further.
        """
        if not self._networks:
            return peer
        hops = [hop for value in forwarded for hop in value.split(",")]
        nearest = peer
        for hop in (peer, *reversed(hops)):
            address = _address(hop)
            if address is None:
                return nearest
            nearest = str(address)
            if not any(address in network for network in self._networks):
                return nearest
        return nearest


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """The address in one hop, which may have a port or brackets; None if there is none."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


class PageGuard:
    """Refuses requests of other sites' pages, for a server without tokens.

    hosts: the names under which browsers may reach the server; "*" for every name.
    cors: the pages of other sites that may call.
    is_on_loopback: the server listens for its own machine alone. Then no client needs another name, and every
        Host header is checked. Otherwise only those of browsers are: in a network a server has many names.
    """

    def __init__(self, hosts: Iterable[str], cors: CorsSettings | None, is_on_loopback: bool) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._own_names = self._hosts | {"localhost", socket.gethostname().lower()}
        self._cors = cors
        self._is_on_loopback = is_on_loopback
        self._known: set[bytes] = {b""}  # Host headers that have passed; without one it is no browser

    def check(self, request: Request) -> None:
        """Raise `Forbidden` for a request of another site's page."""
        headers = request.headers
        origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site")
        if origin is not None or site is not None:
            if self._may_call(origin):
                return
            if self._is_of_other_site(request, origin, site):
                raise _other_site(origin)
        elif not (self._is_on_loopback or headers.get(b"user-agent", b"").startswith(BROWSER)):
            return
        host = headers.get(b"host", b"")
        if host not in self._known:
            self._learn(host)

    def _may_call(self, origin: bytes | None) -> bool:
        if self._cors is None:
            return False
        return ANY in self._cors.origins or (
            origin is not None and self._cors.allows(origin.decode("latin-1"))
        )

    def _is_of_other_site(self, request: Request, origin: bytes | None, site: bytes | None) -> bool:
        """Whether it is. A link to this server on another site's page is no harm, if it only reads."""
        if site == b"cross-site":
            is_link = request.headers.get(b"sec-fetch-mode") == b"navigate" and request.method == "GET"
            return not (is_link and origin is None)
        if origin is None or site in (b"same-origin", b"none"):
            return False
        own = origin.partition(b"://")[2].lower()
        # Behind a proxy the Host header may be another one than the browser sent.
        return own != request.headers.get(b"host", b"").lower() and _name(own) not in self._hosts

    def _learn(self, host: bytes) -> None:
        name = _name(host)
        if ANY not in self._hosts and not (
            name in self._own_names or name.endswith(".localhost") or _address(name) is not None
        ):
            raise Forbidden(
                f"this server asks for no token, so it answers under no name that it does not know, and "
                f"{name[:MAX_SHOWN]!r} is none of its own; add it to callers.hosts, or set auth.tokens_file"
            )
        if len(self._known) < MAX_REMEMBERED:
            self._known.add(host)


def _name(host: bytes) -> str:
    """The name or address in a Host header or an origin, without its port."""
    text = host.decode("latin-1").lower()
    return text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0].rstrip(".")


def _other_site(origin: bytes | None) -> Forbidden:
    page = "" if origin is None else f" ({origin.decode('latin-1')[:MAX_SHOWN]!r})"
    return Forbidden(
        f"this server asks for no token, so it answers no page of another site{page}; add the page's origin "
        "to cors.origins, or set auth.tokens_file"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on this address."""
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback
