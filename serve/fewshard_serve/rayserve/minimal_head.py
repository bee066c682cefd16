"""Starts Ray on one machine without the processes that a server does not use; `cluster` calls it.

A head node of Ray is a control store (GCS) and a raylet, which need each other, and five Python processes:
the autoscaler's monitor, the dashboard, its agent, the agent of runtime environments, and the log monitor.
These five take 300 MB and most of the time that Ray needs to start (docs/log.md). Ray has no setting that
leaves them out, so functions of `ray._private` are replaced while it starts. Where Ray has renamed one of
them, all five start. So they do in a cluster that is joined.
"""

import logging
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)

IDLE_AGENT = subprocess.list2cmdline(["/bin/sh", "-c", "exec cat >/dev/null"])
"""Stands in for an agent: the raylet ends when one of its agents does, and closes the agent's standard input
when it ends itself."""
AGENT_COMMANDS = ("--dashboard_agent_command=", "--runtime_env_agent_command=")
AGENT_PORTS = (
    "METRICS_AGENT_PORT_NAME",
    "METRICS_EXPORT_PORT_NAME",
    "DASHBOARD_AGENT_LISTEN_PORT_NAME",
    "RUNTIME_ENV_AGENT_PORT_NAME",
)
UNUSED = -1
"""What an agent writes in place of a port to say that it offers no such service."""


@contextmanager
def minimal_head(forwards_output: bool) -> Iterator[None]:
    """Within the block, `ray.init` starts a head node without these processes.

    forwards_output: keep the log monitor, which prints the lines that workers write to stdout and stderr.
    """
    from ray._private import node, services

    kind: Any = node.Node
    parts = ["start_monitor", "start_api_server", *([] if forwards_output else ["start_log_monitor"])]
    changes = [(kind, name, lambda _: _nothing) for name in parts]
    changes += [(kind, "start_raylet", _without_ports), (services, "start_ray_process", _with_idle_agents)]
    if missing := [name for owner, name, _ in changes if not hasattr(owner, name)]:
        logger.warning("Ray starts with all its processes: it has no %s", ", ".join(missing))
        yield
        return
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    for owner, name, change in changes:
        setattr(owner, name, change(getattr(owner, name)))
    try:
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def _nothing(*_: Any, **__: Any) -> None:
    """Stands in for the start of a process."""


def _without_ports(start: Callable[..., None]) -> Callable[..., None]:
    """Write the files of ports that the raylet waits for, in place of the agents."""

    def start_raylet(node: Any, *args: Any, **kwargs: Any) -> None:
        from ray import _raylet

        for name in AGENT_PORTS:
            persist_port = getattr(_raylet, "persist_port")  # noqa: B009  its declarations lack the name
            persist_port(node._session_dir, node._node_id, getattr(_raylet, name), UNUSED)
        start(node, *args, **kwargs)

    return start_raylet


def _with_idle_agents(start: Callable[..., Any]) -> Callable[..., Any]:
    def start_ray_process(command: list[str], process_type: str, *args: Any, **kwargs: Any) -> Any:
        return start([_with_idle_agent(part) for part in command], process_type, *args, **kwargs)

    return start_ray_process


def _with_idle_agent(argument: str) -> str:
    option = next((option for option in AGENT_COMMANDS if argument.startswith(option)), None)
    return argument if option is None else option + IDLE_AGENT
