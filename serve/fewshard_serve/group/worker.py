"""A worker: one shard in its own process, led over TCP. A launcher runs it with `python -m` or as a Ray
actor.

Between batches it waits only for the leader's next frame. It ends when the leader is gone.
"""

import json
import logging
import os
import queue
import socket
import sys
import threading
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
from fewshard_serve.group.workers import kill_if_stopped

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
LEADER_SILENCE_S = 60.0
"""The leader pings several times a second. One that is silent this long is treated as gone."""
SEND_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What a worker needs to join its group.

    host, port: where the leader listens.
    store_port: the port of the store at which shards meet.
    secret: proves to the leader that the worker was invited.
    timeout_s: seconds that one exchange may take.
    leader_pid, leader_host: the leader's process, and the name of its machine.
    """

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
    leader_pid: int = 0
    leader_host: str = ""

    @property
    def is_beside_leader(self) -> bool:
        """Whether the leader is another process of this machine."""
        return self.leader_host == socket.gethostname() and self.leader_pid not in (0, os.getpid())


def device_name(device: torch.device) -> str:
    """Return "cpu" or the GPU's model, which must be equal for all shards of a group."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def device_id(device: torch.device) -> str:
    """Return the GPU's UUID, which shows whether two shards share it; "" for a CPU."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""


class Worker:
    """`main` joins the group and serves until the leader is gone or sends the worker away."""

    def __init__(self, config: WorkerConfig, address: str = "127.0.0.1") -> None:
        self._config = config
        self._address = address
        self._inbox: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        self._handlers: dict[str, Callable[[Frame], None]] = {
            "stage": self._stage,
            "connect": self._connect,
            "step": self._step,
            "keep": self._keep,
            "spares": self._keep_spares,
            "stand_by": self._stand_by,
        }
        self._has_ended = threading.Event()

    def main(self) -> None:
        torch.set_num_threads(self._config.num_threads)
        self._link = Link(
            self._reach_leader(), send_timeout_s=SEND_TIMEOUT_S, receive_timeout_s=LEADER_SILENCE_S
        )
        problem = self._load()
        self._link.start(self._take, self._end, "leader")
        if self._config.is_beside_leader:
            watched = self._config.leader_pid, self._has_ended
            threading.Thread(target=kill_if_stopped, args=watched, name="leader-watch", daemon=True).start()
        self._send(self._hello(problem))
        while (frame := self._inbox.get()) is not None and frame.kind != "leave":
            self._handlers[frame.kind](frame)
        if frame is not None:
            logger.warning("sent away: %s", frame.fields["reason"])
            time.sleep(frame.fields["wait_s"])  # its launcher restarts it as soon as it ends

    def _take(self, frame: Frame) -> None:
        """Take a frame, on the link's thread."""
        if frame.kind == "interrupt":  # a step is waiting on the other thread
            self._runtime.interrupt(frame.fields["generation"])
        else:
            self._inbox.put(frame)

    def _reach_leader(self) -> socket.socket:
        at = (self._config.host, self._config.port)
        return socket.create_connection(at, timeout=CONNECT_TIMEOUT_S)

    def _load(self) -> str:
        """Load everything but the experts. Return the problem, or ""."""
        config = self._config
        try:
            directory = resolve(config.path)
            self._fingerprint = fingerprint(directory)
            shard = Shard(directory, storage_dtype(config.dtype), torch.device(config.device))
        except (ModelsError, OSError, RuntimeError) as error:
            self._fingerprint = ""
            return f"{error} (every node needs the checkpoint, under the same name)"
        self._runtime = ShardRuntime(
            config.shard,
            shard,
            config.host,
            config.store_port,
            self._address,
            config.timeout_s,
        )
        return ""

    def _hello(self, problem: str) -> Frame:
        device = torch.device(self._config.device)
        who = {"shard": self._config.shard, "secret": self._config.secret, "pid": os.getpid()}
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
        self._runtime.stage(Epoch.from_fields(frame.fields), self._report)

    def _connect(self, frame: Frame) -> None:
        self._runtime.connect(frame.fields["generation"], self._report)

    def _keep(self, frame: Frame) -> None:
        self._runtime.keep(frame.fields["generation"])

    def _keep_spares(self, frame: Frame) -> None:
        self._runtime.keep_spares(frame.fields["blocks"])

    def _stand_by(self, frame: Frame) -> None:
        self._runtime.stand_by(**frame.fields, report=self._report)

    def _step(self, frame: Frame) -> None:
        part = Part.from_frame(frame)
        started_at = time.monotonic()
        try:
            out = self._runtime.run(part.generation, part.packed(self._runtime.shard.device), part.num_rows)
            reply = PartResult.of(out, time.monotonic() - started_at).to_frame(part.step)
        except Exception as error:  # noqa: BLE001  the leader decides how to react
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
        self._has_ended.set()
        self._inbox.put(None)


def main() -> None:
    """Read a configuration from standard input and serve. Then exit at once, even if threads still wait."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s worker %(message)s", stream=sys.stderr)
    Worker(WorkerConfig(**json.loads(sys.stdin.readline()))).main()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
