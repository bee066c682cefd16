"""The environment variables Ray and its workers need, set before it is imported; called by `launch` alone.

What the user has set already wins: every value here is a default.
"""

import math
import os
import random
import socket
import sys
from collections.abc import Mapping
from contextlib import ExitStack

from fewshard_serve.errors import StartError
from fewshard_serve.rayserve.haproxy import (
    BINARY,
    BUFFER_BYTES,
    RETRIES,
    RETRY_ON,
    Waits,
    has_haproxy,
    write_wrapper,
)

__all__ = ["cluster_environment", "free_ports", "has_haproxy", "prepare_environment"]

MIN_DRAINING_S = 5
"""How long a replica that is scaled away stays reachable while HAProxy forgets it."""

ALWAYS = {
    # What RAY_SERVE_THROUGHPUT_OPTIMIZED=1 means, one by one: as a whole it prints a banner.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_FREEZE_GC_ON_STARTUP": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Replicas say how much waits at them every so often; every 10 s is too late for a load that doubles.
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "2",
    # A client from which nothing comes where something should is cut after so long, instead of an hour.
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
    # Ray runs its workers at nice 15: whatever else the machine does would come before every request.
    "RAY_worker_niceness": "0",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(MIN_DRAINING_S),
    # After 5 s, as it is else, the controller kills a proxy that is still importing on a busy machine.
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "30",
    # Its collector parses one line a request in Python; ours counts requests where they are answered.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # What a replica has not answered because it died or hangs is asked again of another.
    "RAY_SERVE_HAPROXY_RETRY_ON": RETRY_ON,
    "RAY_SERVE_HAPROXY_RETRIES": str(RETRIES),
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(BUFFER_BYTES),
    "RAY_SERVE_HAPROXY_NBTHREAD": str(min(4, os.cpu_count() or 1)),
}
FOR_WORKERS = {
    # oneDNN keeps the products it has compiled, by size; several models need more than its usual 1,024.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "8192",
}
ENABLE_HAPROXY = "RAY_SERVE_ENABLE_HA_PROXY"
FREE_PORTS = (
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
)
PORTS = range(20_000, 30_000)
"""Above those of Ray's workers and below those of Serve's replicas and of outgoing connections, of which one
took a port between its choice and its use."""
ANSWER_TIMEOUT = "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S"
LOOPBACK_ONLY = {
    # Ray's own servers (GCS, raylet, workers, agents) then listen on 127.0.0.1 instead of every address. The
    # name is that of the systems on which it is the default.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # A token is what Ray chooses by itself; naming the mode keeps it from announcing that.
    "RAY_AUTH_MODE": "token",
}
HAPROXY_FILES = {
    "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": "haproxy.cfg",
    "RAY_SERVE_HAPROXY_SOCKET_PATH": "admin.sock",
    "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": "",
    "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": "server-state",
    "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": "metrics.sock",
}


def prepare_environment(
    work_dir: str | None = None,
    waits: Waits = Waits(),  # noqa: B008  it is frozen
) -> bool:
    """Set what is not set yet; whether an HAProxy with our changes will stand in front.

    `work_dir` holds HAProxy's files of a Ray started here; None when joining.
    """
    assert "ray" not in sys.modules, "ray reads its environment when imported. This is a bug."
    _set_defaults(cluster_environment(waits))
    if work_dir is not None:
        _set_defaults(LOOPBACK_ONLY)
        own_haproxy = _own_haproxy(work_dir, waits) if has_haproxy() else {}
        _set_defaults(own_haproxy)
        return BINARY in own_haproxy and os.environ[BINARY] == own_haproxy[BINARY]
    return False


def cluster_environment(waits: Waits = Waits()) -> dict[str, str]:  # noqa: B008  it is frozen
    """What every process of a Ray needs that is started elsewhere, as by `ray start` or KubeRay."""
    answer_s = {ANSWER_TIMEOUT: str(math.ceil(waits.answer_s))}
    return {**ALWAYS, **FOR_WORKERS, ENABLE_HAPROXY: str(int(has_haproxy())), **answer_s}


def _own_haproxy(work_dir: str, waits: Waits) -> dict[str, str]:
    """Files, ports and a binary that no other server on this machine shares."""
    values = {key: os.path.join(work_dir, name) for key, name in HAPROXY_FILES.items()}
    values |= dict(zip(FREE_PORTS, map(str, free_ports(len(FREE_PORTS))), strict=True))
    wrapper = write_wrapper(work_dir, waits)
    return values if wrapper is None else {**values, BINARY: wrapper}


def free_ports(count: int) -> list[int]:
    """Ports of `PORTS` that nothing listens on now; HAProxy's defaults are fixed, so a second server would
    meet them. Raises `StartError` where there are too few."""
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
