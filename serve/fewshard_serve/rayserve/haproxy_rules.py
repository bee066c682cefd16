"""The configuration of HAProxy: what is changed of Ray Serve's, and early refusal of requests.

`haproxy` writes it down, and `haproxy_keeper` applies it whenever HAProxy is started.

Edits. Serve's configuration sets `option splice-request`. With splicing, HAProxy 2.8 does not forward a
client's disconnect when the body arrives in a separate packet after the headers (the usual case), so the
replica keeps computing an answer nobody reads. Serve's configuration also binds the statistics to every
address, waits without limit for the end of a request's headers, forwards any X-Request-Id, answers its own
errors in plain text, lists applications, and so the names of models, at /-/routes, and sends the query
strings of all requests to a syslog server on this machine.

Addresses. Replicas listen where Serve's HTTP server does, so that address is the loopback, and HAProxy alone
listens where the configuration says, with TLS if it has a certificate. One address may have a bounded number
of connections, and a connection of requests at a time (HTTP/2 carries several).

Retries. A request whose replica dies is sent to another replica, but only if HAProxy had received all of it
before it sent the first byte. So HAProxy waits for the body, which must also fit its buffer. Where a client's
connection has carried a request before, HAProxy closes it without an answer when a server breaks off, so that
the client may repeat the request. So every chain of tries ends at a server that always answers. A request
that is too large for another try goes through HAProxy twice (`fewshard-large`), the second time as the first
request of a connection.

Waiting. That last resort is `fewshard-waiting`, a part of this HAProxy: it hands a request to Serve's own
proxy, which waits for a replica, and answers 503 when the request's time is over. HAProxy's time limits
begin anew with each try, so a header carries when that is.

Disconnects. Serve has a task for each request that waits for its client to disconnect. The prediction
handlers listen themselves (`http/request.while_connected`), and only once an answer takes long, so HAProxy
tells Serve not to.

Refusals. A refusal by a replica costs its event loop about as much as an answer: at twice the load it could
serve, half the answers remained, and requests waited seconds to be refused. So each answer of a replica
carries how much may be in flight (`http/backpressure`). HAProxy counts requests in flight by model and by
caller, and applies the rule of `engine/admission` to requests. Only those count whose body is whole, since
others cost a replica nothing yet. The replica still enforces its limits on items and tokens, and permissions.

Each HAProxy counts for itself: those on other nodes and one that is being replaced do not share counters. The
replica refuses what they admit in excess.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fewshard_serve.config import TlsConfig
from fewshard_serve.errors import (
    DeadlineExceeded,
    InternalError,
    MalformedRequest,
    NotFound,
    NotReady,
    Overloaded,
    ServeError,
)
from fewshard_serve.fairness import FAIR_ALPHA
from fewshard_serve.http.backpressure import REFUSED_HEADER, ROOM_HEADER
from fewshard_serve.http.middleware import PRIORITY_HEADER, REQUEST_ID_PATTERN
from fewshard_serve.http.request import MODELS, TIMEOUT_HEADER
from fewshard_serve.http.routes import ROUTES, SheddableRequest, sheddable_requests
from fewshard_serve.http.routing import MODEL, Route
from fewshard_serve.protocol.limits import Limits

MAX_STREAMS = 32
"""Requests of one HTTP/2 connection at a time. HAProxy would allow 100."""
HEADERS_TIMEOUT_S = 10
"""The time a client may take to send the headers of a request."""
IDLE_TIMEOUT_S = 10
"""The time a connection may stay open between two requests."""
MARGIN_MS = 500
"""A replica itself says that a deadline is over. HAProxy does if it has not, so long after."""
CONNECT_TIMEOUT_MS = 250
"""A replica's machine accepts connections at once. HAProxy also waits so long before it tries another one."""

RETRY_ON = "conn-failure empty-response 503"
"""A prediction changes no state, so it may run twice. A replica answers 503 if another one may succeed."""
RETRIES = 3
"""Limited, because a request that kills its replica must not kill all of them. Fewer would not reach the last
resort: a replica that has died is found out by two tries, the one that it breaks off and the next."""
ERROR_LIMIT = 1
"""Failed connections after which a replica gets no more requests until it is found to be well."""
SMALL_BYTES = 8 * 1024
"""A body of a stated length below this is whole once HAProxy has waited for it: it fits the smallest buffer,
beside headers of 20 KiB."""
UNTIL_HEADER = "x-fewshard-until"
"""In a request to a replica: when its time is over, in milliseconds of the clock of HAProxy's machine."""
NO_ANSWER = NotReady("no replica answers; come back soon")
OWN_ERRORS: dict[int, ServeError] = {
    400: MalformedRequest("this is not HTTP that can be understood"),
    404: NotFound("there is no /-/routes; GET /docs lists what there is"),
    408: DeadlineExceeded("the request did not arrive in time; send it faster"),
    500: InternalError("the server failed"),
    502: NO_ANSWER,
    503: NO_ANSWER,
    504: NO_ANSWER,
}
"""HAProxy's own error answers, by the status that HAProxy would use."""


@dataclass(frozen=True, slots=True)
class FrontSettings:
    """What HAProxy needs of the configuration.

    body_s: seconds that a client may take to send a body.
    answer_s: seconds that a replica may take to answer, where no shorter deadline holds.
    deadlines_s: the deadline of each model in seconds, by its name.
    address: where to listen, as `host:port`; empty to listen where Serve says.
    tls: the certificate; None for HTTP without TLS.
    per_address: connections that one address may have; 0 for any number.
    trusted_proxies: networks whose X-Forwarded-For is believed, and whose connections are not counted.
    retried_bytes: the largest request that is retried, which is HAProxy's buffer. HAProxy copies a whole one
        for each request that it may retry, which takes 13 us of CPU time for 64 KiB and 45 us for 256, and
        holds two for each request in flight.
    """

    body_s: float = 30.0
    answer_s: float = 15.0
    deadlines_s: tuple[tuple[str, float], ...] = ()
    address: str = ""
    tls: TlsConfig | None = None
    per_address: int = 0
    trusted_proxies: tuple[str, ...] = ()
    retried_bytes: int = Limits().max_retried_bytes


CERTIFICATE = "server.pem"
DEADLINES = "deadlines.map"


def error_file(folder: str, status: int) -> str:
    """Return the path of the file with HAProxy's own answer of a status."""
    return f"{folder}/error-{status}.http"


NO_QUERY_LOG = (
    'log-format "%ci:%cp [%tr] %ft %b/%s %TR/%Tw/%Tc/%Tr/%Ta %ST %B %ts %ac/%fc/%bc/%sc/%rc %sq/%bq '
    '%HM %HPO %HV"'
)
"""HAProxy's usual line without captured headers, cookies, and the query string. %HPO is the path."""


def edits(folder: str, settings: FrontSettings) -> dict[str, Any]:
    """Return the edits of Serve's configuration, as `haproxy_keeper.Edit` applies them.

    bind, bind_options: where the frontend listens, "" where Serve says, and how.
    per_address: connections that one address may have.
    instead: lines of the defaults that are replaced.
    added: lines that are added, by section; "end" for whole sections.
    """
    tls = f"ssl crt {folder}/{CERTIFICATE} alpn h2,http/1.1" if settings.tls is not None else ""
    return {
        "bind": settings.address,
        "bind_options": tls,
        "per_address": settings.per_address,
        "instead": {
            "timeout connect 5s": f"timeout connect {CONNECT_TIMEOUT_MS}ms",
            "timeout http-keep-alive 90s": f"timeout http-keep-alive {IDLE_TIMEOUT_S}s",
            "option httplog": NO_QUERY_LOG,
        },
        "added": {
            "global": ["    tune.stick-counters 5", f"    tune.h2.max-concurrent-streams {MAX_STREAMS}"],
            "defaults": _lines(_defaults(folder)),
            "frontend http_frontend": _lines(_frontend(settings)),
            "backend http": _lines(rules(ROUTES, folder, settings)),
            "end": WAITING.format(seconds=settings.body_s, until=UNTIL_HEADER).splitlines(),
        },
    }


def _lines(text: str) -> list[str]:
    return [f"    {line}" for line in text.splitlines()]


def _defaults(folder: str) -> str:
    files = "\n".join(f"errorfile {status} {error_file(folder, status)}" for status in OWN_ERRORS)
    return f"timeout http-request {HEADERS_TIMEOUT_S}s\n{files}"


def _frontend(settings: FrontSettings) -> str:
    networks = " ".join(settings.trusted_proxies)
    others = f" !{{ src {networks} }}" if networks else ""
    bound = f"""\
tcp-request connection track-sc4 src table fewshard-addresses
tcp-request connection reject if {{ sc_conn_cur(4) gt @PER_ADDRESS@ }}{others}
"""
    return f"""\
{bound if settings.per_address else ""}\
http-request del-header x-request-id if {{ req.fhdr_cnt(x-request-id) gt 1 }}
http-request del-header x-request-id unless {{ req.fhdr(x-request-id) -m reg ^{REQUEST_ID_PATTERN}$ }}
http-request return status 404 default-errorfiles if {{ path -i /-/routes }}
http-request set-header x-request-disconnect-disabled ?1
http-request wait-for-body time {round(1000 * settings.body_s)}ms
acl is_small req.hdr_val(content-length) lt {SMALL_BYTES}
acl has_length req.hdr(content-length) -m found
http-request set-var(txn.sent) req.body_len unless is_small
http-request set-var(txn.missing) req.body_size,sub(txn.sent) unless is_small
http-request set-var(txn.missing) int(1) if !is_small !has_length {{ req.body_len gt 0 }}
acl is_large var(txn.missing) -m int gt 0
"""


WAITING = """\
backend fewshard-large
    option http-server-close
    http-reuse never
    retries 0
    timeout server 1h
    server inner unix@@LARGE@ send-proxy-v2
backend fewshard-addresses
    stick-table type ipv6 size 100k expire 1m store conn_cur
frontend fewshard-waiting
    bind unix@@WAITING@
    option httpclose
    http-request return status 200 if {{ path /-/healthz }}
    default_backend fewshard-waiting
backend fewshard-waiting
    retries 0
    http-request set-var(txn.now) date(0,ms)
    http-request set-var(txn.left) req.fhdr({until}),sub(txn.now)
    http-request return status 503 default-errorfiles unless {{ var(txn.left) -m int gt 0 }}
    http-request set-timeout server var(txn.left)
    acl is_of_replica res.hdr(content-type) -m beg application/json
    http-response return status 503 default-errorfiles if {{ status ge 500 }} !is_of_replica
@FALLBACK@"""
"""Sections of our own. Serve's proxy says in plain text what goes wrong."""

_ROOM, _REFUSED, _PRIORITY, _TIMEOUT = (
    each.decode() for each in (ROOM_HEADER, REFUSED_HEADER, PRIORITY_HEADER, TIMEOUT_HEADER)
)
_TOO_MUCH = Overloaded("too much is in flight; retry in %[sc_get_gpt(1,0)] s", 1.0)


def rules(routes: Sequence[Route], folder: str, settings: FrontSettings) -> str:
    """Return the rules for the backend of a host, one a line.

    The backend has one stick table, with four kinds of entries:

    - `<model>` (counter 0) for the latest room that a replica reported (gpt), and the refusals not yet
      reported to a replica, by kind of request, and their sum (gpc);
    - `<model> all` and `<model> <caller>` (counters 1 and 2) for requests in flight;
    - `token <hash>` (counter 3) for a token that a replica has accepted. A caller is such a token, else an
      address: made-up tokens are no callers of their own.
    """
    requests = list(sheddable_requests(routes))
    table = (
        f"stick-table type string len 256 size 20k expire 1m store conn_cur,gpc({len(requests) + 1}),gpt(2)"
    )
    return "\n".join(
        [
            "option forwardfor",
            table,
            "http-request set-var(txn.path) path,url_dec",
            f"acl is_of_model var(txn.path) -m beg {MODELS}/",
            "http-request set-var(txn.model) var(txn.path),field(4,/) if is_of_model",
            "http-request track-sc0 var(txn.model)",
            f"http-request set-var(txn.predicts) bool(true) if METH_POST {_is_at(*_of_models(requests))}",
            "acl predicts var(txn.predicts) -m bool",
            # Each request that may be retried costs a whole buffer, and is copied into it.
            "http-request disable-l7-retry if !METH_POST !is_of_model",
            *_deadline(routes, folder, settings),
            *_caller(settings),
            *_REFUSING.format(alpha=FAIR_ALPHA, priority=_PRIORITY).splitlines(),
            *_refusal(requests),
            *_COUNTING.format(room=_ROOM).splitlines(),
        ]
    )


def _deadline(routes: Sequence[Route], folder: str, settings: FrontSettings) -> Iterator[str]:
    """Set the time limit: the model's, a slow route's, or Serve's; the client may ask for less."""
    yield "http-request set-var(txn.within) be_server_timeout"
    if settings.deadlines_s:
        limit = f"var(txn.model),map_str_int({folder}/{DEADLINES},0)"
        yield f"http-request set-var(txn.limit) {limit} if predicts"
        yield "http-request set-var(txn.within) var(txn.limit) if { var(txn.limit) -m int gt 0 }"
    sheddable = _of_models(list(sheddable_requests(routes)))
    for route in routes:
        if route.answer_within_s is not None:
            within_ms = round(1000 * route.answer_within_s)
            first = "" if route in sheddable else "!predicts "
            yield f"http-request set-var(txn.within) int({within_ms}) if {first}{_is_at(route)}"
    yield from f"""\
http-request set-var(txn.asked) req.fhdr({_TIMEOUT}) if {{ req.fhdr({_TIMEOUT}) -m reg ^[1-9][0-9]{{0,14}}$ }}
http-request set-var(txn.spared) var(txn.within),sub(txn.asked) if {{ var(txn.asked) -m found }}
http-request set-var(txn.within) var(txn.asked) if {{ var(txn.spared) -m int gt 0 }}
http-request set-var(txn.within) var(txn.within),add({MARGIN_MS})
http-request set-timeout server var(txn.within)
http-request set-header {UNTIL_HEADER} %[date(0,ms),add(txn.within)]
""".splitlines()


def _caller(settings: FrontSettings) -> Iterator[str]:
    """Tell callers apart as replicas do."""
    yield "http-request set-var(txn.address) src"
    if settings.trusted_proxies:
        last = "req.hdr_ip(x-forwarded-for,-1)"
        networks = " ".join(settings.trusted_proxies)
        yield f"http-request set-var(txn.address) {last} if {{ src {networks} }} {{ {last} -m found }}"
    yield from """\
acl has_token req.hdr(authorization) -m found
http-request set-var-fmt(txn.token) "token %[req.fhdr(authorization),xxh64]" if predicts has_token
acl is_known var(txn.token),table_gpt(0,@BACKEND@) -m int gt 0
http-request set-var-fmt(txn.caller) "%[var(txn.model)] %[var(txn.address)]" if predicts
http-request set-var-fmt(txn.caller) "%[var(txn.model)] %[var(txn.token)]" if predicts is_known
http-request set-var-fmt(txn.all) "%[var(txn.model)] all" if predicts
""".splitlines()


_REFUSING = """\
http-request set-var(txn.servers) nbsrv
http-request set-var(txn.room) sc_get_gpt(0,0),mul(txn.servers) if predicts
acl may_refuse var(txn.room) -m int gt 0
http-request set-var(txn.others) var(txn.all),table_conn_cur if may_refuse
http-request set-var(txn.free) var(txn.room),sub(txn.others),sub(1) if may_refuse
http-request set-var(txn.most) var(txn.free),mul(-{alpha}),add(txn.others),add(1) if may_refuse
acl is_tight var(txn.most) -m int gt 0
http-request set-var(txn.held) var(txn.caller),table_conn_cur if is_tight
http-request set-var(txn.rest) var(txn.others),sub(txn.held) if is_tight
http-request set-var(txn.reserve) var(txn.room),div(4),add(txn.free) if is_tight
http-request set-var(txn.excess) var(txn.free),mul(-{alpha}),add(txn.held),add(1) if is_tight
acl is_alone var(txn.others) -m int le 0
acl is_urgent req.hdr({priority}) -m str high
acl is_new var(txn.held) -m int le 0
acl is_only var(txn.rest) -m int le 0
acl is_full var(txn.free) -m int lt 0
acl is_crammed var(txn.reserve) -m int lt 0
acl holds_much var(txn.excess) -m int gt 0
http-request set-var(txn.refused) bool(true) if is_tight !is_alone !is_urgent is_crammed
http-request set-var(txn.refused) bool(true) if is_tight !is_alone !is_urgent !is_new is_full
http-request set-var(txn.refused) bool(true) if is_tight !is_alone !is_urgent !is_new !is_only holds_much
acl is_refused var(txn.refused) -m bool"""
"""A caller who holds nothing may exceed the room by a quarter. `excess` is what a caller would hold beyond
its fair share of what would be free, and `most` if all that is in flight were its own: where that is not too
much, nobody is refused, and no more is looked at."""

_COUNTING = """\
acl is_part var(txn.missing) -m int gt 0
http-request track-sc1 var(txn.all) if predicts !is_part
http-request track-sc2 var(txn.caller) if predicts !is_part
acl tells_room res.hdr({room}) -m found
acl tells_caller res.fhdr({room}),field(3,/) -m int 1
http-response sc-set-gpt(0,0) res.fhdr({room}),field(1,/) if tells_room
http-response sc-set-gpt(1,0) res.fhdr({room}),field(2,/) if tells_room
acl has_caller var(txn.token) -m found
http-response track-sc3 var(txn.token) if has_caller tells_caller !is_known
http-response sc-set-gpt(0,3) int(1) if has_caller tells_caller !is_known
http-response del-header {room} if tells_room"""
"""Whether a body without Content-Length is whole is not known, so it counts as a part."""


def _refusal(requests: Sequence[SheddableRequest]) -> Iterator[str]:
    """Answer what is refused in the form of its route, count it, and tell the next replica of it."""
    total = len(requests)
    for number, request in enumerate(requests):
        yield f"http-request sc-inc-gpc({number},0) if is_refused {_is_one(request)}"
    yield f"http-request sc-inc-gpc({total},0) if is_refused"
    yield "http-request set-header x-request-id %[uuid] if is_refused !{ req.hdr(x-request-id) -m found }"
    bodies: dict[str, list[Route]] = {}
    for request in requests:
        body = request.route.encode_error(_TOO_MUCH).body.decode()
        bodies.setdefault(body, []).append(request.route)
    for body, routes in bodies.items():
        yield (
            "http-request return status 429 content-type application/json hdr retry-after %[sc_get_gpt(1,0)] "
            f"hdr x-request-id %[req.fhdr(x-request-id)] lf-string '{body}' if is_refused {_is_at(*routes)}"
        )
    told = "/".join(f"%[sc_clr_gpc({number},0)]" for number in range(total))
    yield f"http-request del-header {_REFUSED}"
    yield f"http-request set-header {_REFUSED} {told} if {{ sc_clr_gpc({total},0) gt 0 }}"


def _of_models(requests: Sequence[SheddableRequest]) -> list[Route]:
    return [request.route for request in requests]


def _is_at(*routes: Route) -> str:
    """Match the paths of routes of models, with or without a version, and with slashes at the end."""
    ends = "|".join(dict.fromkeys(re.escape(route.path.removeprefix(MODEL)) for route in routes))
    return f"{{ var(txn.path) -m reg ^{MODELS}/[^/]+(/versions/[^/]+)?({ends})/*$ }}"


def _is_one(request: SheddableRequest) -> str:
    if request.header is None:
        return _is_at(request.route)
    return (
        f"{_is_at(request.route)} {'' if request.has_header else '!'}{{ req.hdr({request.header}) -m found }}"
    )
