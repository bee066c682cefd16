"""A group of shards in threads gives the answers of the whole model, whoever holds which expert."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from fewshard_kernels import Routing
from fewshard_models.classifier.load import load_checkpoint
from fewshard_models.errors import CheckpointError, NoRoomError
from fewshard_models.sharding import Placement, contiguous
from fewshard_models.sharding import experts as experts_module
from fewshard_models.sharding import shard as shard_module
from fewshard_models.sharding.exchange import LocalExchange, Rendezvous, join_store, meet, serve_store
from fewshard_models.sharding.experts import ExpertMap
from fewshard_models.sharding.shard import Shard
from fewshard_models.sharding.weights import fingerprint
from fewshard_models.text import pack

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 6e-2}
VARIANTS = {
    "top-1": {},
    "top-2": {"num_experts_per_tok": 2, "norm_topk_prob": True},
    "top-3, width that fills no word": {"num_experts_per_tok": 3, "hidden_size": 44},
    "request routing": {"routing": "request"},
    "request routing, top-2": {"routing": "request", "num_experts_per_tok": 2},
    "first token, segments": {"pooling": "cls", "pooler_act": "tanh"},
}


@pytest.fixture(scope="module")
def store():
    return serve_store("127.0.0.1")


def random_items(num_items, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 101, rng.integers(1, 20)).tolist() for _ in range(num_items)]


def random_placement(num_shards, seed, num_experts=8, copies=3):
    """Every expert once and some twice or more, in any slots."""
    rng = np.random.default_rng(seed)
    slots = np.full((2, num_shards, num_experts), -1)
    for layer in slots:
        for expert in [*range(num_experts), *rng.integers(0, num_experts, copies)]:
            shard = rng.integers(num_shards)
            if expert not in layer[shard]:
                layer[shard][rng.choice(np.flatnonzero(layer[shard] == -1))] = expert
    placement = Placement(slots, num_experts)
    placement.check()
    return placement


def experts_of(placement, shard):
    return tuple(tuple(e for e in row.tolist() if e >= 0) for row in placement.slots[:, shard])


class Threads:
    """A group whose shards are threads."""

    def __init__(self, store, directory, size, name, dtype=torch.float32, device=CPU):
        self.store, self.size, self.name, self.device = store, size, name, device
        self.shards = [Shard(directory, dtype, device) for _ in range(size)]
        self.num_formed = 0

    def form(self, placement):
        self.num_formed += 1
        everyone = [experts_of(placement, rank) for rank in range(self.size)]

        def one(rank):
            client = join_store("127.0.0.1", self.store.port, 60)
            exchange = meet(
                client, Rendezvous(f"{self.name}-{self.num_formed}", rank, self.size, timeout_s=60)
            )
            shard = self.shards[rank]
            shard.activate(shard.stage(everyone[rank]), everyone, exchange)

        self.each(one)
        return self

    def each(self, work):
        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(work, range(self.size)))

    def run(self, items):
        """Logits in the order of the items, dealt out in turn, and what each shard gave."""
        parts = [items[rank :: self.size] for rank in range(self.size)]
        num_rows = max(sum(map(len, part)) for part in parts)
        outs = self.each(lambda rank: self.shards[rank].run(pack(parts[rank], None, self.device), num_rows))
        logits = torch.empty(len(items), outs[0].logits.shape[1])
        for rank, out in enumerate(outs):
            logits[rank :: self.size] = out.logits
        return logits, outs


def whole(directory, items, dtype=torch.float32, device=CPU):
    network = load_checkpoint(directory, dtype, device).model
    network.prepare_for_inference()
    with torch.inference_mode():
        return network.forward_packed(pack(items, None, device))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [2, 4])
def test_a_group_answers_as_the_whole_model(store, moe_checkpoint, variant, size):
    directory = moe_checkpoint(**VARIANTS[variant])
    items = random_items(13)
    group = Threads(store, directory, size, f"{variant}-{size}").form(random_placement(size, seed=size))
    logits, outs = group.run(items)
    expected = whole(directory, items)
    assert torch.allclose(logits, expected.logits, atol=TOLERANCE[torch.float32])
    for layer, stats in enumerate(expected.moe_stats):
        rows = sum(out.moe_stats[layer].expert_rows for out in outs)
        assert torch.equal(rows, stats.expert_rows)
        assert sum(int(out.num_computed[layer]) for out in outs) == int(stats.expert_rows.sum())
        assert sum(float(out.moe_stats[layer].entropy) for out in outs) == pytest.approx(
            float(stats.entropy), rel=1e-4
        )


def test_a_group_answers_in_bf16(store, moe_checkpoint):
    """But for at most 1 % of the items, whose routers are near a tie: each path rounds in its own way."""
    directory, items = moe_checkpoint(num_experts_per_tok=2), random_items(200)
    group = Threads(store, directory, 2, "bf16", torch.bfloat16).form(random_placement(2, seed=1))
    logits, _ = group.run(items)
    expected = whole(directory, items, torch.bfloat16).logits
    apart = (logits - expected).abs().amax(dim=1) / max(1.0, float(expected.abs().max()))
    assert (apart > 6e-2).float().mean() <= 0.01
    assert apart.median() < 2e-2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("variant", VARIANTS)
def test_shards_on_one_gpu_answer_as_the_whole_model(store, moe_checkpoint, variant, size):
    """Through pinned memory and Gloo; absent experts are skipped by the kernels, not picked out."""
    gpu, items = torch.device("cuda"), random_items(13)
    directory = moe_checkpoint(hidden_size=64, moe_intermediate_size=64, **sized(VARIANTS[variant]))
    group = Threads(store, directory, size, f"gpu-{variant}-{size}", torch.bfloat16, gpu)
    logits, outs = group.form(random_placement(size, seed=size)).run(items)
    expected = whole(directory, items, torch.bfloat16, gpu)
    scale = max(1.0, float(expected.logits.abs().max()))
    assert (logits - expected.logits.cpu()).abs().max() < 6e-2 * scale
    for layer, stats in enumerate(expected.moe_stats):
        assert sum(int(out.num_computed[layer]) for out in outs) == int(stats.expert_rows.sum())


def sized(variant):
    return {name: value for name, value in variant.items() if name != "hidden_size"}


def test_a_shard_without_items_still_serves_the_others(store, moe_checkpoint):
    directory, items = moe_checkpoint(), random_items(1)
    group = Threads(store, directory, 3, "one-item").form(contiguous(2, 8, 3, 3))
    logits, outs = group.run(items)
    assert torch.allclose(logits, whole(directory, items).logits, atol=1e-4)
    assert [len(out.logits) for out in outs] == [1, 0, 0]
    assert sum(int(out.num_computed.sum()) for out in outs[1:]) > 0


def test_a_new_placement_changes_no_answer_and_keeps_what_stays(store, moe_checkpoint):
    directory, items = moe_checkpoint(dtype=torch.float16), random_items(9)
    group = Threads(store, directory, 2, "moving").form(contiguous(2, 8, 2, 8))
    before, _ = group.run(items)
    held_then = [shard._held for shard in group.shards]
    placement = np.array(contiguous(2, 8, 2, 8).slots)
    placement[1] = random_placement(2, seed=5).slots[1]
    group.form(Placement(placement, 8))
    after, _ = group.run(items)
    assert torch.allclose(before, after, atol=1e-5)
    for then, shard in zip(held_then, group.shards, strict=True):
        assert shard._held[0] is then[0]
        assert shard._held[1] is not then[1]


@pytest.mark.parametrize(("hidden", "top_k"), [(384, 1), (768, 2), (1024, 1)])
def test_a_row_on_the_wire_lets_kernels_load_16_bytes_at_a_time(hidden, top_k):
    """Triton knows that only where a row's stride in values is a multiple of 16."""
    x = torch.randn(3, hidden, dtype=torch.bfloat16)
    routing = Routing(torch.rand(3, top_k), torch.zeros(3, top_k, dtype=torch.int64))
    wire = experts_module._Wire.of(x, top_k)
    rows, back = wire.read(wire.write(x, routing, num_rows=4, num_experts=8), x.dtype)
    assert rows.stride(0) % 16 == 0
    assert torch.equal(rows[:3], x)
    assert torch.equal(back.weights[:3], routing.weights)


def test_experts_on_no_shard_contribute_nothing(store, moe_checkpoint):
    directory, items = moe_checkpoint(), random_items(6)
    slots = np.array(contiguous(2, 8, 2, 4).slots)
    slots[:, 1] = -1
    logits, outs = Threads(store, directory, 2, "masked").form(Placement(slots, 8)).run(items)
    assert torch.isfinite(logits).all()
    assert not torch.allclose(logits, whole(directory, items).logits, atol=1e-2)
    assert outs[1].num_computed.tolist() == [0, 0]


def test_copies_share_the_rows_of_their_expert_evenly():
    """Each choice is served once; of 1,001 for an expert with three copies none gets more than 334."""
    torch.manual_seed(0)
    everyone = [[0, 1], [1, 2], [2, 1]]
    duties = [ExpertMap.of(rank, everyone, 4, CPU) for rank in range(3)]
    experts = torch.cat([torch.ones(1001, dtype=torch.int64), torch.randint(0, 5, (500,))])
    experts = experts[torch.randperm(1501)].unsqueeze(1)
    served = torch.stack([each.local_slots(experts) >= 0 for each in duties])
    assert torch.equal(served.sum(dim=0) == 1, experts < 3), "expert 3 is nowhere, 4 is padding"
    of_one = (served & (experts == 1)).sum(dim=(1, 2))
    assert of_one.max() - of_one.min() <= 1
    assert {int(each.local_slots(torch.tensor([[1]])).max()) for each in duties} == {-1, 1}


def test_each_choice_of_a_row_finds_its_slot():
    duties = ExpertMap.of(1, [[0, 3], [2, 1]], 4, CPU)
    assert duties.local_slots(torch.tensor([[2, 3], [1, 2], [4, 4]])).tolist() == [[0, -1], [1, 0], [-1, -1]]


def test_a_shard_that_lacks_memory_says_how_much(moe_checkpoint, monkeypatch):
    shard = Shard(moe_checkpoint(), torch.float32, CPU)
    monkeypatch.setattr(shard_module, "available_bytes", lambda device: 10_000)
    with pytest.raises(NoRoomError, match=r"16 experts need .* GB on cpu"):
        shard.stage(((0, 1, 2, 3, 4, 5, 6, 7), (0, 1, 2, 3, 4, 5, 6, 7)))
    shard.activate(shard.stage(((), ())), [((), ())], LocalExchange())


@pytest.mark.parametrize(("changes", "message"), [({"num_experts": 0, "moe_layers": None}, "dense model")])
def test_what_cannot_be_sharded_is_refused(moe_checkpoint, changes, message):
    with pytest.raises(CheckpointError, match=message):
        Shard(moe_checkpoint(**changes), torch.float32, CPU)


def test_a_damaged_file_is_a_checkpoint_error(moe_checkpoint):
    directory = moe_checkpoint(seed=3)
    shard = Shard(directory, torch.float32, CPU)
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged"):
        shard.stage(((0,), (1,)))


def test_fingerprints_tell_checkpoints_apart(moe_checkpoint, tmp_path):
    first, again, other = moe_checkpoint(), moe_checkpoint(seed=1), moe_checkpoint(num_experts=4)
    assert fingerprint(first) == fingerprint(again) != fingerprint(other)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        fingerprint(tmp_path)
