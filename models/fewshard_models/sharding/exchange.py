"""Communication between the shards of a group: all-gather and reduce-scatter behind one small interface.

Called by a shard's expert layers. Every call has a timeout; after a failed call the exchange is unusable.
"""

import os
import socket
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from fewshard_models.errors import ExchangeError

# torch declares only part of what this module exports.
c10d: Any = torch.distributed
Store = Any


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """A shard's part in a meeting.

    name: name of the meeting; it must be unique.
    rank, size: this shard's rank, and the number of shards.
    address: address at which this shard can be reached.
    timeout_s: timeout of every call.
    backend: "gloo" or "nccl".
    """

    name: str
    rank: int
    size: int
    address: str = "127.0.0.1"
    timeout_s: float = 3.0
    backend: str = "gloo"


C10D_TIMEOUT_S = 3600.0
"""c10d's own limit for a collective of NCCL. It may end the process, so ours must come first."""
C10D_SETTINGS = {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "0", "TORCH_NCCL_ENABLE_MONITORING": "0"}
"""By default (ProcessGroupNCCL.hpp) c10d's watchdog ends the process after a failed collective, and a monitor
does if the watchdog hangs. A group survives both, and its own watcher is the only judge."""


def leave_judgement_to_us() -> None:
    """Keep c10d from ending this process. It reads the environment when a group of NCCL is made."""
    for name, value in C10D_SETTINGS.items():
        os.environ.setdefault(name, value)


class Exchange(ABC):
    """A group of `size` shards. All shards make the same calls with equal shapes in the same order."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size

    @abstractmethod
    def all_gather(self, rows: Tensor) -> Tensor:
        """Concatenate all shards' `rows` [T, …] in rank order: [size * T, …]. Raises ExchangeError."""

    @abstractmethod
    def reduce_scatter(self, rows: Tensor) -> Tensor:
        """Sum all shards' `rows` [size * T, H] and return this shard's part [T, H].

        Summed in fp32 in rank order and rounded once. Raises ExchangeError.
        """

    def abort(self) -> None:
        """Leave the group, so that shards that wait for this one fail at once."""
        return

    def interrupt(self) -> None:
        """End the calls that wait for a shard which is gone; any thread may call it.

        Where connections to it have broken, calls end by themselves.
        """
        return

    def check(self) -> None:
        """Raise ExchangeError if earlier results are invalid; call it after reading results."""
        return


class LocalExchange(Exchange):
    """A group of one shard, without communication."""

    def __init__(self) -> None:
        super().__init__(rank=0, size=1)

    def all_gather(self, rows: Tensor) -> Tensor:
        return rows

    def reduce_scatter(self, rows: Tensor) -> Tensor:
        return rows


class GlooExchange(Exchange):
    """Exchange between processes over TCP. GPU tensors pass through pinned host memory.

    The sum is computed here after an all-to-all. Gloo's own reduce-scatter sends as many bytes but took twice
    as long, and it adds 16-bit numbers in 16 bits (docs/log.md).
    """

    def __init__(self, store: Store, meeting: Rendezvous) -> None:
        super().__init__(meeting.rank, meeting.size)
        options = c10d.ProcessGroupGloo._Options()
        options._timeout = timedelta(seconds=meeting.timeout_s)
        options._devices = [c10d.ProcessGroupGloo.create_device(hostname=meeting.address)]
        own_store = c10d.PrefixStore(meeting.name, store)
        self._group: Any = _guarded(
            lambda: c10d.ProcessGroupGloo(own_store, meeting.rank, meeting.size, options)
        )

    def all_gather(self, rows: Tensor) -> Tensor:
        sent = _to_host(rows)
        found = _host_like(rows, (self.size * rows.shape[0], *rows.shape[1:]))
        self._wait(lambda: self._joined._allgather_base(found, sent))
        return _to_device(found, rows)

    def reduce_scatter(self, rows: Tensor) -> Tensor:
        sent = _to_host(rows)
        found = _host_like(rows, tuple(rows.shape))
        self._wait(lambda: self._joined.alltoall_base(found, sent, [], []))
        parts = found.view(self.size, -1, *rows.shape[1:])
        return _to_device(parts.sum(dim=0, dtype=torch.float32).to(rows.dtype), rows)

    def abort(self) -> None:
        # Gloo's own abort leaves waiting calls blocked; dropping the last reference closes the connections.
        self._group = None

    @property
    def _joined(self) -> Any:
        if self._group is None:
            raise ExchangeError("the exchange was aborted")
        return self._group

    def _wait(self, call: Any) -> None:
        # No variable here may hold the group: the traceback of an error would keep it alive, and with it the
        # connections, whose closing is what notifies the other shards.
        _guarded(lambda: call().wait())


class NcclExchange(Exchange):
    """Exchange between GPUs. The host never waits for a collective.

    A watcher thread aborts a collective that exceeds the timeout; the next call or `check` then raises. The
    communicator exists once the exchange does: c10d would make it at the first collective, amid a batch.
    """

    def __init__(self, store: Store, meeting: Rendezvous) -> None:
        super().__init__(meeting.rank, meeting.size)
        leave_judgement_to_us()
        options = c10d.ProcessGroupNCCL.Options()
        options._timeout = timedelta(seconds=C10D_TIMEOUT_S)
        own_store = c10d.PrefixStore(meeting.name, store)
        self._group = _guarded(lambda: c10d.ProcessGroupNCCL(own_store, meeting.rank, meeting.size, options))
        self._timeout_s = meeting.timeout_s
        self._newest: tuple[Any, float] | None = None
        self._is_aborted = False
        threading.Thread(target=self._watch, name="nccl-watcher", daemon=True).start()
        self.all_gather(torch.zeros(1, device="cuda"))
        _guarded(torch.cuda.synchronize)
        self.check()

    def all_gather(self, rows: Tensor) -> Tensor:
        found = rows.new_empty(self.size * rows.shape[0], *rows.shape[1:])
        self._enqueue(lambda: self._group._allgather_base(found, rows.contiguous()))
        return found

    def reduce_scatter(self, rows: Tensor) -> Tensor:
        found = torch.empty_like(rows)
        self._enqueue(lambda: self._group.alltoall_base(found, rows.contiguous(), [], []))
        parts = found.view(self.size, -1, *rows.shape[1:])
        return parts.sum(dim=0, dtype=torch.float32).to(rows.dtype)

    def abort(self) -> None:
        if not self._is_aborted:
            self._is_aborted = True
            self._group.abort()

    def interrupt(self) -> None:
        self.abort()  # a kernel that waits for a dead shard's GPU would spin for ever

    def check(self) -> None:
        if self._is_aborted:
            raise ExchangeError("a collective was aborted: a shard has died or is too slow")

    def _enqueue(self, call: Any) -> None:
        self.check()
        work = _guarded(call)
        _guarded(work.wait)  # blocks the stream, not the host
        self._newest = (work, time.monotonic() + self._timeout_s)

    def _watch(self) -> None:
        while not self._is_aborted:
            time.sleep(self._timeout_s / 10)
            newest = self._newest
            if newest is not None and time.monotonic() > newest[1] and not newest[0].is_completed():
                self.abort()


def serve_store(address: str) -> Store:
    """A rendezvous store for shards, listening on `address` only; its port is `.port`."""
    family = socket.getaddrinfo(address, None)[0][0]
    listener = socket.socket(family)
    listener.bind((address, 0))
    listener.listen(1024)
    port = listener.getsockname()[1]
    # torch's own listener would accept connections on every interface.
    options = {"is_master": True, "wait_for_workers": False, "master_listen_fd": listener.detach()}
    return c10d.TCPStore(address, port, **options)


def join_store(address: str, port: int, timeout_s: float) -> Store:
    """Connect to the store of another process. Raises ExchangeError if it cannot be reached."""
    options = {"is_master": False, "wait_for_workers": False, "timeout": timedelta(seconds=timeout_s)}
    return _guarded(lambda: c10d.TCPStore(address, port, **options))


def meet(store: Store, meeting: Rendezvous) -> Exchange:
    """Wait for all shards of a meeting. Raises ExchangeError if some do not arrive in time.

    NCCL needs a GPU for every shard; Gloo works everywhere else, also for shards that share a GPU.
    """
    if meeting.size == 1:
        return LocalExchange()
    return (NcclExchange if meeting.backend == "nccl" else GlooExchange)(store, meeting)


def _guarded(call: Any) -> Any:
    try:
        return call()
    except RuntimeError as error:  # the type of all c10d errors
        raise ExchangeError(str(error).partition("\n")[0]) from error


def _host_like(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=rows.dtype, pin_memory=rows.is_cuda)


def _to_host(rows: Tensor) -> Tensor:
    return _host_like(rows, tuple(rows.shape)).copy_(rows) if rows.is_cuda else rows.contiguous()


def _to_device(found: Tensor, like: Tensor) -> Tensor:
    return found.to(like.device, non_blocking=True) if like.is_cuda else found
