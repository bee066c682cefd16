"""Sets the environment variables that Ray and its workers read on import. Only `launch` calls it.

Every value is a default: variables that the user has set are kept.
"""

import math
import os
import random
import secrets
import socket
import sys
from collections.abc import Mapping
from contextlib import ExitStack

from fewshard_serve.errors import StartError
from fewshard_serve.rayserve.handles import INNER_MESSAGE, WIDEST_MESSAGE
from fewshard_serve.rayserve.haproxy import BINARY, has_haproxy, write_wrapper
from fewshard_serve.rayserve.haproxy_rules import ERROR_LIMIT, RETRIES, RETRY_ON, FrontSettings

__all__ = ["cluster_environment", "free_ports", "has_haproxy", "prepare_environment"]

MIN_DRAINING_S = 5
"""A replica that is scaled down stays reachable this long, until HAProxy has removed it."""

ALWAYS = {
    # The parts of RAY_SERVE_THROUGHPUT_OPTIMIZED=1, set one by one: the variable itself prints a banner.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    # Between gateway and replicas. Its default of 4 MiB is narrower than `limits.max_body_bytes` at the door.
    INNER_MESSAGE: str(WIDEST_MESSAGE),
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_FREEZE_GC_ON_STARTUP": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Replicas report their load this often. The default of 10 s is too slow for a load that doubles.
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
    # Disconnect a client that stays silent while data is expected. The default is an hour.
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
    # By default Ray runs its workers at nice 15, so any other work on the machine would precede requests.
    "RAY_worker_niceness": "0",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(MIN_DRAINING_S),
    # By default the controller kills a proxy after 5 s, while it is still importing on a busy machine.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30",
    # Serve's collector parses one line a request in Python. Fewshard counts requests where they are answered.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # A request that a replica did not answer, because it died, is sent to another replica.
    "RAY_SERVE_HAPROXY_RETRY_ON": RETRY_ON,
    "RAY_SERVE_HAPROXY_RETRIES": str(RETRIES),
    "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": str(ERROR_LIMIT),
    "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
}
FOR_WORKERS = {
    # oneDNN caches compiled matrix products by size. Several models need more than its default of 1,024.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "8192",
    # A tokenizer's own threads would work for large texts first come first served, whoever waits. The server
    # divides its threads between callers itself.
    "TOKENIZERS_PARALLELISM": "false",
}
ENABLE_HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"
FREE_PORTS = (
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
)
PORTS = range(20_000, 30_000)
"""Above the ports of Ray's workers, below those of Serve's replicas and of outgoing connections. An outgoing
connection once took a port after it was chosen and before it was used."""
ANSWER_TIMEOUT = "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S"
BUFFER = "RAY_SERVE_HAPROXY_TUNE_BUFSIZE"
LOOPBACK_ONLY = {
    # Makes Ray's own servers (GCS, raylet, workers, agents) listen on 127.0.0.1 instead of every address. The
    # variable is named after the systems on which this is the default.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Ray would choose token by itself; setting the mode suppresses its announcement.
    "RAY_AUTH_MODE": "token",
}
NOT_COLLECTED = {
    # Ray's own metrics, which each of its processes would gather for an agent that does not run here.
    "RAY_enable_metrics_collection": "0",
}
RAY_FOLDER = "RAY_TMPDIR"
"""Ray would keep its sessions in a folder of all users and runs, with sockets that anybody may open."""
TOKEN_FILE = "RAY_AUTH_TOKEN_PATH"
"""Ray would keep its token in the home directory, which may be missing, not writable, or open to others."""
HAPROXY_FILES = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
}


def prepare_environment(
    work_dir: str | None = None,
    front: FrontSettings = FrontSettings(),  # noqa: B008  it is frozen
) -> bool:
    """Set the variables that are unset. Return whether an HAProxy with our changes will run.

    `work_dir` holds the token, the sessions and the HAProxy files of a Ray that is started here; None when
    joining one. Only this user may read it, as `tempfile` makes folders.
    """
    assert "ray" not in sys.modules, "ray reads its environment when imported. This is a bug."
    _set_defaults(cluster_environment(front))
    if work_dir is not None:
        _set_defaults(
            LOOPBACK_ONLY | NOT_COLLECTED | {TOKEN_FILE: _new_token(work_dir), RAY_FOLDER: work_dir}
        )
        own_haproxy = _own_haproxy(work_dir, front) if has_haproxy() else {}
        _set_defaults(own_haproxy)
        return BINARY in own_haproxy and os.environ[BINARY] == own_haproxy[BINARY]
    return False


def _new_token(work_dir: str) -> str:
    """Write a token that only this run of Ray takes, and return the path of its file."""
    path = os.path.join(work_dir, "auth_token")
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as file:
        file.write(secrets.token_hex(32))
    return path


def cluster_environment(
    front: FrontSettings = FrontSettings(),  # noqa: B008  it is frozen
) -> dict[str, str]:
    """Return the variables for every process of a Ray that is started elsewhere (`ray start`, KubeRay)."""
    of_front = {ANSWER_TIMEOUT: str(math.ceil(front.answer_s)), BUFFER: str(front.retried_bytes)}
    return {**ALWAYS, **FOR_WORKERS, ENABLE_HAPROXY: str(int(has_haproxy())), **of_front}


def _own_haproxy(work_dir: str, front: FrontSettings) -> dict[str, str]:
    """Return files, ports and a binary that no other server on this machine shares."""
    values = {key: os.path.join(work_dir, name) for key, name in HAPROXY_FILES.items()}
    values |= dict(zip(FREE_PORTS, map(str, free_ports(len(FREE_PORTS))), strict=True))
    wrapper = write_wrapper(work_dir, front, launcher=os.getpid())
    return values if wrapper is None else {**values, BINARY: wrapper}


def free_ports(count: int) -> list[int]:
    """Return `count` ports of `PORTS` on which nothing listens now.

    HAProxy's default ports are fixed, so a second server would collide with them. Raises `StartError` if too
    few ports are free.
    """
    found: list[int] = []
    with ExitStack() as stack:
        for port in random.sample(PORTS, len(PORTS)):
            try:
                stack.enter_context(socket.socket()).bind(("", port))
            except OSError:
                continue
            found.append(port)
            if len(found) == count:
                return found
    raise StartError(f"fewer than {count} of the ports {PORTS.start} to {PORTS.stop - 1} are free; free some")


def _set_defaults(values: Mapping[str, str]) -> None:
    for key, value in values.items():
        os.environ.setdefault(key, value)
