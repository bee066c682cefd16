"""What the parts of `server_chaos` share: how large a run is, the server they work on, and the table."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chaos_probes import DEADLINE_S
from chaos_server import COMMAND, Server
from chaos_table import Row, Table

TWICE = {"name": "twice", "path": "zoo:sst2-moe", "replicas": {"min": 2}}
ALONE = {"name": "alone", "path": "zoo:sst2-moe"}
PICTURES = {"name": "pictures", "path": "zoo:cifar10-dst"}
READY_S = 30.0
GONE_S = 10.0


@dataclass(frozen=True, slots=True)
class Form:
    """How large a run is.

    seconds: of probes after each disturbance.
    ways: what is done to each process.
    restarts: of each process that the server does not survive.
    whole_suite: whether silent bodies are sent to each path by itself, too, and all with `auth` once more.
    updates: to models that cannot answer.
    requests: of the soak.
    kills: among them.
    """

    seconds: float
    ways: tuple[str, ...]
    restarts: int
    whole_suite: bool
    updates: int
    requests: int
    kills: int


FULL = Form(90.0, ("kill", "stop", "twice"), 20, True, 20, 1_000_000, 10)
SHORT = Form(15.0, ("kill",), 1, False, 7, 5_000, 2)


class Stage:
    """The server of one part at a time. Every server has a folder of its own for its file and its log.

    part: the part that is running.
    folder: of the servers.
    kept: where the table is.
    """

    def __init__(
        self, folder: Path, port: int, form: Form, table: Table, command: Sequence[str] = COMMAND
    ) -> None:
        self.port, self.form, self.part = port, form, ""
        self.server: Server | None = None
        self._left: list[Server] = []
        self.kept, self.is_resumed = table.folder, table.is_resumed
        self.folder, self._table, self._command, self._number = folder, table, command, 0

    async def start(self, models: Sequence[dict[str, Any]], **sections: Any) -> tuple[Server, float]:
        """Start a server in place of the last one. Return it, and the seconds until it was ready."""
        server = self.begin(models, **sections)
        return server, await server.ready()

    def begin(self, models: Sequence[dict[str, Any]], wraps: Sequence[str] = (), **sections: Any) -> Server:
        """Start a server without waiting for it. `wraps`: a command that runs the server's."""
        self.end()
        return self._begin(models, wraps, **sections)

    async def start_beside(self, models: Sequence[dict[str, Any]]) -> tuple[Server, float]:
        """Start a server as a supervisor does, who leaves whatever is left of the last one as it is."""
        self._left += [self.server] if self.server else []
        server = self._begin(models, ())
        return server, await server.ready()

    def _begin(self, models: Sequence[dict[str, Any]], wraps: Sequence[str], **sections: Any) -> Server:
        folder = self.folder / f"{self.part}-{self._number}"
        folder.mkdir(parents=True, exist_ok=True)
        self._number += 1
        ports = {"port": self.port, "grpc_port": self.port + 1}
        config = {"models": [dict(model) for model in models], "server": ports, **sections}
        self.server = Server(folder, config, [*wraps, *self._command])
        return self.server

    def end(self, at_once: bool = False) -> None:
        """End the server, and what is left of those before it."""
        for server in (*self._left, *([self.server] if self.server else [])):
            server.kill() if at_once else server.close()
        self._left, self.server = [], None

    def has(self, what: str) -> bool:
        """Return whether the row is there already."""
        return self._table.has(self.part, what)

    def add(self, what: str, figures: dict[str, Any], met: bool | None, remark: str = "") -> Row:
        """Keep a row, and tell it."""
        row = self._table.add(self.part, what, figures, met, remark)
        told = ", ".join(f"{key} {value}" for key, value in figures.items())
        print(f"{self.part}: {what}: {told}; met {met} {remark}", file=sys.stderr, flush=True)
        return row


def as_dict(form: Form) -> dict[str, Any]:
    """Return the form as JSON has it."""
    return {**asdict(form), "ways": list(form.ways)}


STOP_S = DEADLINE_S + 5.0
"""How long the server may take to end on SIGTERM."""
