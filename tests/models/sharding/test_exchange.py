"""All-gather and reduce-scatter between threads that stand for shards, over Gloo on the loopback."""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from fewshard_models.errors import ExchangeError
from fewshard_models.sharding.exchange import (
    C10D_SETTINGS,
    GlooExchange,
    LocalExchange,
    NcclExchange,
    Rendezvous,
    c10d,
    join_store,
    leave_judgement_to_us,
    meet,
    serve_store,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def store():
    return serve_store("127.0.0.1")


def together(store, size, work, name, timeout_s=30.0, backend="gloo"):
    """Run `work(exchange)` on every rank; results or errors in the order of ranks."""

    def run(rank):
        try:
            client = join_store("127.0.0.1", store.port, timeout_s)
            return work(meet(client, Rendezvous(name, rank, size, timeout_s=timeout_s, backend=backend)))
        except ExchangeError as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_shard_gets_all_rows_and_its_part_of_the_sum(store, size, dtype):
    torch.manual_seed(size)
    mine = torch.randn(size, 5, 7, dtype=dtype)
    partial = torch.randn(size, size * 5, 7, dtype=dtype)

    def work(exchange):
        return exchange.all_gather(mine[exchange.rank]), exchange.reduce_scatter(partial[exchange.rank])

    expected = partial.float().sum(dim=0).to(dtype).view(size, 5, 7)
    for rank, (gathered, part) in enumerate(together(store, size, work, f"sum-{size}-{dtype}")):
        assert torch.equal(gathered, mine.flatten(0, 1))
        assert torch.equal(part, expected[rank])


def test_the_sum_of_16_bit_rows_is_rounded_once(store):
    """1 and three times less than half of its last bit: rounded after each addition, they would be lost."""
    values = [1.0, 0.003, 0.003, 0.003]

    def work(exchange):
        return exchange.reduce_scatter(torch.full((4, 1), values[exchange.rank], dtype=torch.bfloat16))

    parts = together(store, 4, work, "rounding")
    assert {float(part) for part in parts} == {1.0078125}


def test_bytes_travel_as_they_are(store):
    rows = torch.arange(256, dtype=torch.uint8).view(4, 64)
    first, second = together(store, 2, lambda exchange: exchange.all_gather(rows), "bytes")
    assert torch.equal(first, rows.repeat(2, 1))
    assert torch.equal(second, first)


def test_one_shard_exchanges_with_nobody():
    rows = torch.randn(3, 2)
    exchange = meet(None, Rendezvous("alone", 0, 1))
    assert isinstance(exchange, LocalExchange)
    assert exchange.all_gather(rows) is rows
    assert exchange.reduce_scatter(rows) is rows


def test_a_shard_that_leaves_is_noticed_at_once(store):
    def work(exchange):
        exchange.all_gather(torch.zeros(1))
        if exchange.rank == 2:
            exchange.abort()
            return 0.0
        started_at = time.monotonic()
        with pytest.raises(ExchangeError):
            exchange.all_gather(torch.zeros(1))
        return time.monotonic() - started_at

    assert max(together(store, 3, work, "leaving", timeout_s=20)) < 5


def test_a_shard_that_hangs_is_noticed_after_the_timeout(store):
    goes_on = threading.Event()

    def work(exchange):
        if exchange.rank == 1:
            goes_on.wait(10)
            return None
        started_at = time.monotonic()
        with pytest.raises(ExchangeError):
            exchange.reduce_scatter(torch.zeros(2, 1))
        goes_on.set()
        return time.monotonic() - started_at

    waited_s, _ = together(store, 2, work, "hanging", timeout_s=0.5)
    assert 0.4 < waited_s < 5


def test_an_aborted_exchange_says_so(store):
    def work(exchange):
        exchange.abort()
        exchange.all_gather(torch.zeros(1))

    assert "aborted" in str(together(store, 2, work, "aborted")[0])


def test_whoever_does_not_come_is_waited_for_no_longer_than_the_timeout(store):
    with pytest.raises(ExchangeError):
        GlooExchange(store, Rendezvous("nobody-comes", 0, 2, timeout_s=0.3))


def test_a_store_that_is_not_there_is_an_exchange_error():
    with pytest.raises(ExchangeError):
        join_store("127.0.0.1", 1, 0.3)


def test_the_store_listens_on_its_address_alone(store):
    import socket

    with socket.socket() as other, pytest.raises(ConnectionRefusedError):
        other.connect(("127.0.0.2", store.port))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("size", [2, 4])
def test_rows_of_one_gpu_travel_through_pinned_memory(store, size):
    mine = torch.randn(size, 5, 8, device="cuda", dtype=torch.bfloat16)
    partial = torch.randn(size, size * 5, 8, device="cuda", dtype=torch.bfloat16)

    def work(exchange):
        return exchange.all_gather(mine[exchange.rank]), exchange.reduce_scatter(partial[exchange.rank])

    expected = partial.float().sum(dim=0).bfloat16().view(size, 5, 8)
    for rank, (gathered, part) in enumerate(together(store, size, work, f"gpu-{size}")):
        assert torch.equal(gathered, mine.flatten(0, 1))
        assert torch.equal(part, expected[rank])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nccl_with_one_rank(store):
    exchange = NcclExchange(store, Rendezvous("nccl-alone", 0, 1, backend="nccl"))
    rows = torch.randn(5, 8, device="cuda")
    assert torch.equal(exchange.all_gather(rows), rows)
    assert torch.equal(exchange.reduce_scatter(rows), rows)
    exchange.check()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_nccl_between_two_gpus(store):
    def work(exchange):
        torch.cuda.set_device(exchange.rank)
        rows = torch.full((4, 8), float(exchange.rank), device="cuda")
        return exchange.all_gather(rows).cpu(), exchange.reduce_scatter(rows).cpu()

    for gathered, part in together(store, 2, work, "nccl-two", backend="nccl"):
        assert gathered[:, 0].tolist() == [0.0] * 4 + [1.0] * 4
        assert part.tolist() == [[1.0] * 8] * 2


def test_c10d_must_not_end_the_process_after_a_failed_collective(monkeypatch):
    """Its watchdog would tear every survivor of a loss down, a minute after they have formed anew."""
    for name in C10D_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_NCCL_ENABLE_MONITORING", "1")  # what an operator sets stays
    leave_judgement_to_us()
    assert os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "0"
    assert os.environ["TORCH_NCCL_ENABLE_MONITORING"] == "1"


class FakeNccl:
    """`ProcessGroupNCCL` whose collectives end when told to, as on a GPU: enqueued, not waited for."""

    def __init__(self, store, rank, size, options):
        self.timeout_s = options._timeout.total_seconds()
        self.environment = {name: os.environ.get(name) for name in C10D_SETTINGS}
        self.num_gathers = self.num_aborts = 0
        self.hangs = False

    def _allgather_base(self, found, sent):
        self.num_gathers += 1
        return SimpleNamespace(wait=lambda: None, is_completed=lambda: not self.hangs)

    def abort(self):
        self.num_aborts += 1


@pytest.fixture
def nccl(store, monkeypatch):
    """An exchange over it, on the CPU."""
    options = SimpleNamespace(_timeout=None)
    FakeNccl.Options = lambda: options
    monkeypatch.setattr(c10d, "ProcessGroupNCCL", FakeNccl, raising=False)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, device=None, **more: zeros(*shape, **more))
    for name in C10D_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    exchange = NcclExchange(store, Rendezvous("fake", 0, 2, timeout_s=0.2))
    yield exchange
    exchange.abort()


def test_a_communicator_exists_before_the_first_batch_and_c10d_judges_nothing(nccl):
    assert nccl._group.num_gathers == 1
    assert nccl._group.environment == C10D_SETTINGS
    assert nccl._group.timeout_s >= 600, "far beyond ours"


def test_a_collective_that_hangs_is_aborted_by_us(nccl):
    nccl._group.hangs = True
    nccl.all_gather(torch.ones(2))
    give_up_at = time.monotonic() + 10
    while not nccl._group.num_aborts:
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
    with pytest.raises(ExchangeError, match="aborted"):
        nccl.check()


def test_a_collective_that_waits_for_a_dead_shard_is_interrupted_at_once(nccl):
    nccl._timeout_s = 3600.0
    nccl._group.hangs = True
    nccl.all_gather(torch.ones(2))
    nccl.interrupt()
    assert nccl._group.num_aborts == 1
    with pytest.raises(ExchangeError, match="aborted"):
        nccl.check()
