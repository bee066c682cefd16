"""A worker: one shard in a process of its own, led over TCP. Run by a launcher, `python -m` or a Ray actor.

Between batches it waits for the leader's next frame, and for nothing else; it ends when the leader has gone.
"""

import json
import logging
import os
import queue
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from fewshard_models.checkpoint import resolve
from fewshard_models.devices import storage_dtype
from fewshard_models.errors import ExchangeError, ModelsError
from fewshard_models.sharding.shard import Shard
from fewshard_models.sharding.weights import fingerprint
from fewshard_serve.group.epoch import Epoch
from fewshard_serve.group.partition import Part, PartResult
from fewshard_serve.group.shard_runtime import Prepared, ShardRuntime
from fewshard_serve.group.transport import Frame, Link, WireError

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
LEADER_SILENCE_S = 60.0
"""The leader pings several times a second; one that is silent for as long has gone without a word."""
SEND_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """All a worker needs to know to take its seat. `secret` proves to the leader that it was invited."""

    shard: int
    host: str
    port: int
    store_port: int
    secret: str
    path: str
    dtype: str
    device: str
    timeout_s: float
    num_threads: int


def device_name(device: torch.device) -> str:
    """What all shards of a group must share: "cpu", or the kind of GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def device_id(device: torch.device) -> str:
    """Tells whether two shards share a GPU; "" for a CPU."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""


class Worker:
    """`main` takes the seat and serves until the leader has gone or sends it away."""

    def __init__(self, invitation: WorkerConfig, address: str = "127.0.0.1") -> None:
        self._invitation = invitation
        self._address = address
        self._inbox: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        self._handlers: dict[str, Callable[[Frame], None]] = {
            "stage": self._stage,
            "connect": self._connect,
            "step": self._step,
            "keep": self._keep,
        }

    def main(self) -> None:
        torch.set_num_threads(self._invitation.num_threads)
        self._link = Link(
            self._reach_leader(), send_timeout_s=SEND_TIMEOUT_S, receive_timeout_s=LEADER_SILENCE_S
        )
        problem = self._load()
        self._link.start(self._inbox.put, self._end, "leader")
        self._send(self._hello(problem))
        while (frame := self._inbox.get()) is not None and frame.kind != "leave":
            self._handlers[frame.kind](frame)
        if frame is not None:
            logger.warning("sent away: %s", frame.fields["reason"])
            time.sleep(frame.fields["wait_s"])  # whoever starts workers starts another at once

    def _reach_leader(self) -> socket.socket:
        at = (self._invitation.host, self._invitation.port)
        return socket.create_connection(at, timeout=CONNECT_TIMEOUT_S)

    def _load(self) -> str:
        """Load all but the experts; what is wrong, or ""."""
        invitation = self._invitation
        try:
            directory = resolve(invitation.path)
            self._fingerprint = fingerprint(directory)
            shard = Shard(directory, storage_dtype(invitation.dtype), torch.device(invitation.device))
        except (ModelsError, OSError, RuntimeError) as error:
            self._fingerprint = ""
            return f"{error} (every node needs the checkpoint, under the same name)"
        self._seat = ShardRuntime(
            invitation.shard,
            shard,
            invitation.host,
            invitation.store_port,
            self._address,
            invitation.timeout_s,
        )
        return ""

    def _hello(self, problem: str) -> Frame:
        device = torch.device(self._invitation.device)
        who = {"shard": self._invitation.shard, "secret": self._invitation.secret, "pid": os.getpid()}
        what = {"device": "", "device_id": ""}
        if not problem:
            what = {"device": device_name(device), "device_id": device_id(device)}
        return Frame(
            "hello",
            {
                **who,
                **what,
                "host": socket.gethostname(),
                "address": self._address,
                "fingerprint": self._fingerprint,
                "problem": problem,
            },
        )

    def _stage(self, frame: Frame) -> None:
        self._seat.stage(Epoch.from_fields(frame.fields), self._report)

    def _connect(self, frame: Frame) -> None:
        self._seat.connect(frame.fields["generation"], self._report)

    def _keep(self, frame: Frame) -> None:
        self._seat.keep(frame.fields["generation"])

    def _step(self, frame: Frame) -> None:
        part = Part.from_frame(frame)
        started_at = time.monotonic()
        try:
            out = self._seat.run(part.generation, part.packed(self._seat.shard.device), part.num_rows)
            reply = PartResult.of(out, time.monotonic() - started_at).to_frame(part.step)
        except Exception as error:  # noqa: BLE001  the leader decides what follows from it
            is_exchange = isinstance(error, ExchangeError)
            fields = {"step": part.step, "is_exchange": is_exchange, "problem": f"{error!r}"}
            reply = Frame("failed", fields)
        self._send(reply)

    def _report(self, prepared: Prepared) -> None:
        self._send(Frame("prepared", asdict(prepared)))

    def _send(self, frame: Frame) -> None:
        try:
            self._link.send(frame)
        except WireError as error:
            logger.warning("the leader cannot be reached: %s", error)
            self._link.close()

    def _end(self, reason: str) -> None:
        logger.info("the leader has gone: %s", reason)
        self._inbox.put(None)


def main() -> None:
    """Read an invitation from standard input, serve, and end at once, whatever threads still wait."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s worker %(message)s", stream=sys.stderr)
    Worker(WorkerConfig(**json.loads(sys.stdin.readline()))).main()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
