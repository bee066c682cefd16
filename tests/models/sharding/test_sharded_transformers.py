"""Shards of a network of transformers, in threads, answer as the whole, whoever holds which expert."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fewshard_models.classifier.load import load
from fewshard_models.conformance.experts import EAGER, NUM_EXPERTS, TOP_K, ways
from fewshard_models.conformance.text import Reference, write_checkpoint
from fewshard_models.conformance.words import SHORT
from fewshard_models.errors import CheckpointError
from fewshard_models.sharding import Placement, contiguous
from fewshard_models.sharding.exchange import LocalExchange, Rendezvous, join_store, meet, serve_store
from fewshard_models.sharding.shard import Shard
from fewshard_models.sharding.transformers_body import TYPES
from fewshard_models.text import pack

CPU = torch.device("cpu")
SIZE = 3


@pytest.fixture(scope="module")
def store():
    return serve_store("127.0.0.1")


@pytest.fixture(scope="module", params=TYPES)
def directory(request, tmp_path_factory):
    """A checkpoint in which each expert is stored by itself, in several files."""
    directory = tmp_path_factory.mktemp(request.param)
    write_checkpoint(directory, request.param, **ways(request.param)["top-2"])
    spread(directory, load_file(directory / "model.safetensors"))
    return directory


def spread(directory, tensors, num_files=4):
    """Store the tensors in several files, with an index."""
    names, found = sorted(tensors), {}
    for number in range(num_files):
        file = f"model-{number}.safetensors"
        part = {name: tensors[name].contiguous() for name in names[number::num_files]}
        save_file(part, directory / file, {"format": "pt"})
        found |= dict.fromkeys(part, file)
    (directory / "model.safetensors").unlink(missing_ok=True)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": found}))


def shards(store, directory, name, placement, dtype=torch.float32):
    """One for each shard of the placement, with its experts, connected with the others."""
    size = placement.num_shards
    everyone = [
        tuple(tuple(e for e in row.tolist() if e >= 0) for row in placement.slots[:, rank])
        for rank in range(size)
    ]

    def one(rank):
        shard = Shard(directory, dtype, CPU)
        client = join_store("127.0.0.1", store.port, 60)
        exchange = meet(client, Rendezvous(name, rank, size, timeout_s=60))
        shard.activate(shard.stage(everyone[rank]), everyone, exchange)
        return shard

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


def run(group, parts):
    """Run one step; `parts`: the items of each shard."""
    num_rows = max(sum(map(len, part)) for part in parts)
    packed = [pack(part, None, CPU) for part in parts]
    with ThreadPoolExecutor(len(group)) as pool:
        return list(pool.map(lambda shard, part: shard.run(part, num_rows), group, packed))


def copies(num_layers, seed):
    """Every expert on one shard at least, and some on two."""
    rng = np.random.default_rng(seed)
    slots = np.full((num_layers, SIZE, NUM_EXPERTS), -1)
    for layer in slots:
        for expert in [*range(NUM_EXPERTS), *rng.integers(0, NUM_EXPERTS, 3)]:
            shard = rng.integers(SIZE)
            if expert not in layer[shard]:
                layer[shard][rng.choice(np.flatnonzero(layer[shard] == -1))] = expert
    placement = Placement(slots, NUM_EXPERTS)
    placement.check()
    return placement


@pytest.mark.parametrize("placement", ["contiguous", "copies"])
def test_shards_answer_as_transformers_and_count_the_same(store, directory, placement):
    whole = load(directory, device="cpu", dtype="fp32")
    whole.self_check()
    items = whole.prepare([whole.preprocessor.to_input(text) for text in SHORT])
    whole.run(items)
    expected, counts = Reference(directory, **EAGER).logits(SHORT, 64), whole.expert_counts()
    slots, num_layers = NUM_EXPERTS // SIZE + 1, len(counts.tokens)
    even = contiguous(num_layers, NUM_EXPERTS, SIZE, slots)
    chosen = even if placement == "contiguous" else copies(num_layers, seed=1)
    group = shards(store, directory, f"{directory.name}-{placement}", chosen)
    ids = [item.features.ids for item in items]
    for parts in ([ids[rank::SIZE] for rank in range(SIZE)], [ids, [], []]):
        outs = run(group, parts)
        logits = np.concatenate([out.logits.numpy() for out in outs])
        order = [row for part in parts for row in map(ids.index, part)]
        np.testing.assert_allclose(logits, expected[order], atol=1e-4)
        for layer in range(num_layers):
            rows = sum(out.moe_stats[layer].expert_rows for out in outs)
            assert rows.tolist() == counts.tokens[layer].tolist()
            entropy = sum(float(out.moe_stats[layer].entropy) for out in outs)
            assert entropy == pytest.approx(counts.entropy[layer], rel=1e-4)
            assert sum(int(out.num_computed[layer]) for out in outs) == counts.tokens[layer].sum()


def test_experts_that_are_stored_merged_are_read(store, directory, tmp_path):
    alone = Shard(directory, torch.float32, CPU)
    everyone = [tuple(tuple(range(NUM_EXPERTS)) for _ in alone.config.expert_layers)]
    alone.activate(alone.stage(everyone[0]), everyone, LocalExchange())
    merged = load(directory, device="cpu", dtype="fp32").network.state_dict()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((directory / name).read_bytes())
    spread(tmp_path, merged, 2)
    other = Shard(tmp_path, torch.float32, CPU)
    other.activate(other.stage(everyone[0]), everyone, LocalExchange())
    items = pack([[0, 7, 9, 11], [0, 5]], None, CPU)
    assert torch.equal(alone.run(items, 6).logits, other.run(items, 6).logits)


def test_a_shard_holds_its_experts_alone(directory):
    shard = Shard(directory, torch.float32, CPU)
    assert (shard.config.num_experts, shard.config.num_experts_per_tok) == (NUM_EXPERTS, TOP_K)
    assert shard.num_bytes_an_expert == 4 * 3 * 64 * 32
    last = len(shard.config.expert_layers) - 1
    staged = shard.stage((*[()] * last, (1, 6)))
    assert [layer.experts for layer in staged] == [*[()] * last, (1, 6)]
    held = staged[last].blocks[0].plain
    experts = load(directory, device="cpu", dtype="fp32").experts.layers[last].module
    assert torch.equal(held.w1, experts.gate_up_proj[[1, 6]])
    assert torch.equal(held.w2, experts.down_proj[[1, 6]])
    assert not any("experts.gate_up_proj" in name for name in shard._body._network.state_dict())


def test_what_cannot_be_sharded_is_refused(directory, tmp_path):
    write_checkpoint(tmp_path, "gpt_oss")
    with pytest.raises(CheckpointError, match=r"is a gpt_oss model; fewshard_text, .* can be sharded"):
        Shard(tmp_path, torch.float32, CPU)
