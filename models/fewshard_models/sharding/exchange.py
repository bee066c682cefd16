"""How the shards of a group exchange rows: all-gather and reduce-scatter behind one small interface.

Called by the expert layers of a shard. Every call has a time-out; after one that fails the
exchange is of no use.
"""

import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import PrefixStore, ProcessGroupGloo, Store, TCPStore

from fewshard_models.errors import ExchangeError


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where and as whom a shard meets the others: `rank` of `size`, and the name of this meeting, which no
    other may have had. `address` is where this shard can be reached; `backend` is "gloo" or "nccl"."""

    name: str
    rank: int
    size: int
    address: str = "127.0.0.1"
    timeout_s: float = 3.0
    backend: str = "gloo"


class Exchange(ABC):
    """One meeting of `size` shards. Every shard makes the same calls, with equal shapes, in one order."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size

    @abstractmethod
    def all_gather(self, rows: Tensor) -> Tensor:
        """Everyone's `rows` [T, …], in the order of ranks: [size * T, …]. Raises ExchangeError."""

    @abstractmethod
    def reduce_scatter(self, rows: Tensor) -> Tensor:
        """The sum over the shards of their `rows` [size * T, H], of which this one gets its part [T, H].

        Summed in fp32 in the order of ranks, and rounded once. Raises ExchangeError.
        """

    def abort(self) -> None:
        """Leave the meeting, so that whoever waits for this shard learns of it at once."""
        return


class LocalExchange(Exchange):
    """A group of one: nobody to exchange with."""

    def __init__(self) -> None:
        super().__init__(rank=0, size=1)

    def all_gather(self, rows: Tensor) -> Tensor:
        return rows

    def reduce_scatter(self, rows: Tensor) -> Tensor:
        return rows


class GlooExchange(Exchange):
    """Over TCP between processes. Tensors of a GPU travel through pinned host memory.

    The sum is made here, of what an all-to-all brings: Gloo's own reduce-scatter sends as many bytes and took
    twice as long, and it adds 16-bit numbers in 16 bits (docs/log.md).
    """

    def __init__(self, store: Store, meeting: Meeting) -> None:
        super().__init__(meeting.rank, meeting.size)
        options = ProcessGroupGloo._Options()
        options._timeout = timedelta(seconds=meeting.timeout_s)
        options._devices = [ProcessGroupGloo.create_device(hostname=meeting.address)]
        self._group: ProcessGroupGloo | None = _guarded(
            lambda: ProcessGroupGloo(PrefixStore(meeting.name, store), meeting.rank, meeting.size, options)
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
        # Gloo's own abort lets waiting calls wait on; the last reference closes the connections.
        self._group = None

    @property
    def _joined(self) -> ProcessGroupGloo:
        if self._group is None:
            raise ExchangeError("the exchange was aborted")
        return self._group

    def _wait(self, call: Any) -> None:
        # No variable here holds the group: the traceback of an error would keep it, and with it the
        # connections whose end tells the others.
        _guarded(lambda: call().wait())


class NcclExchange(Exchange):
    """Between GPUs. The host never waits for a collective: a watcher aborts what outlasts the time-out, and
    the next call, or `check` after the results were read, says so."""

    def __init__(self, store: Store, meeting: Meeting) -> None:
        super().__init__(meeting.rank, meeting.size)
        from torch.distributed import ProcessGroupNCCL

        options = ProcessGroupNCCL.Options()
        options._timeout = timedelta(seconds=meeting.timeout_s)
        self._group = _guarded(
            lambda: ProcessGroupNCCL(PrefixStore(meeting.name, store), meeting.rank, meeting.size, options)
        )
        self._watcher = _Watcher(meeting.timeout_s, self.abort)
        self._is_aborted = False

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

    def check(self) -> None:
        """Raise ExchangeError where a call of this meeting was aborted."""
        if self._is_aborted:
            raise ExchangeError("a collective was aborted: a shard has died or is too slow")

    def _enqueue(self, call: Any) -> None:
        self.check()
        work = _guarded(call)
        _guarded(work.wait)
        self._watcher.watch(work)


class _Watcher:
    """Calls `abort` once the newest work it was given is not done after `timeout_s`."""

    def __init__(self, timeout_s: float, abort: Any) -> None:
        self._timeout_s = timeout_s
        self._abort = abort
        self._newest: tuple[Any, float] | None = None
        threading.Thread(target=self._main, name="nccl-watcher", daemon=True).start()

    def watch(self, work: Any) -> None:
        self._newest = (work, time.monotonic() + self._timeout_s)

    def _main(self) -> None:
        while True:
            time.sleep(self._timeout_s / 10)
            newest = self._newest
            if newest is not None and not newest[0].is_completed() and time.monotonic() > newest[1]:
                self._abort()
                return


def serve_store(address: str) -> TCPStore:
    """The store at which shards meet, listening on `address` alone; its port is in `.port`."""
    import socket

    family = socket.getaddrinfo(address, None)[0][0]
    listener = socket.socket(family)
    listener.bind((address, 0))
    listener.listen(1024)
    port = listener.getsockname()[1]
    # torch's own listener would accept on every interface.
    return TCPStore(address, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


def join_store(address: str, port: int, timeout_s: float) -> TCPStore:
    """The store that another process serves. Raises ExchangeError where it cannot be reached."""
    timeout = timedelta(seconds=timeout_s)
    return _guarded(lambda: TCPStore(address, port, is_master=False, timeout=timeout, wait_for_workers=False))


def meet(store: Store, meeting: Meeting) -> Exchange:
    """Wait for the others of a meeting. Raises ExchangeError where they do not all come in time.

    NCCL needs a GPU for every shard; Gloo serves all others, shards that share a GPU too.
    """
    if meeting.size == 1:
        return LocalExchange()
    return (NcclExchange if meeting.backend == "nccl" else GlooExchange)(store, meeting)


def _guarded(call: Any) -> Any:
    try:
        return call()
    except RuntimeError as error:  # c10d's errors are all of this kind
        raise ExchangeError(str(error).partition("\n")[0]) from error


def _host_like(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=rows.dtype, pin_memory=rows.is_cuda)


def _to_host(rows: Tensor) -> Tensor:
    return _host_like(rows, tuple(rows.shape)).copy_(rows) if rows.is_cuda else rows.contiguous()


def _to_device(found: Tensor, like: Tensor) -> Tensor:
    return found.to(like.device, non_blocking=True) if like.is_cuda else found
