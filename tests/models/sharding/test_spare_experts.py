"""A shard takes over lost experts from memory: what it holds stays, and spares are used as they are."""

import numpy as np
import pytest
import torch

from fewshard_models.classifier.load import load_checkpoint
from fewshard_models.errors import NoRoomError
from fewshard_models.sharding import shard as shard_module
from fewshard_models.sharding import weights as weights_module
from fewshard_models.sharding.exchange import LocalExchange
from fewshard_models.sharding.shard import Shard
from fewshard_models.text import pack

CPU = torch.device("cpu")
HALF, EVERYTHING = (0, 1, 2, 3), (tuple(range(8)),) * 2


def random_items(num_items):
    rng = np.random.default_rng(0)
    return [rng.integers(1, 101, rng.integers(1, 20)).tolist() for _ in range(num_items)]


def whole(directory, items):
    network = load_checkpoint(directory, torch.float32, CPU).model
    network.prepare_for_inference()
    with torch.inference_mode():
        return network.forward_packed(pack(items, None, CPU))


def run(shard, items):
    return shard.run(pack(items, None, CPU), sum(map(len, items)))


@pytest.mark.parametrize("top_k", [1, 2])
def test_a_loss_is_covered_from_memory_without_a_copy(moe_checkpoint, monkeypatch, top_k):
    """The survivor's experts stay where they are, the lost ones' spares are used, and nothing is read."""
    directory, items = moe_checkpoint(num_experts_per_tok=top_k, norm_topk_prob=top_k > 1), random_items(9)
    survivor = Shard(directory, torch.float32, CPU)
    survivor.activate(survivor.stage((HALF, HALF)), [(HALF, HALF)], LocalExchange())
    before = [layer.blocks for layer in survivor._held]
    survivor.keep_spares([[[4, 5], [6, 7]], [[4, 5, 6, 7]]])
    spares = [layer.blocks for layer in survivor._spares]
    monkeypatch.setattr(weights_module, "read_experts", lambda *args: pytest.fail("read"))
    monkeypatch.setattr(survivor, "_empty", lambda count: pytest.fail("copied"))
    survivor.activate(survivor.stage(EVERYTHING, at_once=True), [EVERYTHING], LocalExchange())
    assert [layer.blocks for layer in survivor._held] == [
        (*one, *other) for one, other in zip(before, spares, strict=True)
    ]
    expected, out = whole(directory, items), run(survivor, items)
    assert torch.allclose(out.logits, expected.logits, atol=1e-4)
    assert out.num_computed.tolist() == [int(stats.expert_rows.sum()) for stats in expected.moe_stats]
    assert [layer.blocks for layer in survivor.stage((HALF, HALF))] == before, "all as it was"


def test_what_a_loss_asks_for_beyond_the_spares_is_read(moe_checkpoint):
    directory, items = moe_checkpoint(), random_items(5)
    shard = Shard(directory, torch.float32, CPU)
    shard.activate(shard.stage(((0, 1), (2, 3))), [((0, 1), (2, 3))], LocalExchange())
    shard.keep_spares([[[5]], [[0, 1], [7]]])
    shard.activate(shard.stage(EVERYTHING, at_once=True), [EVERYTHING], LocalExchange())
    blocks = [[block.experts for block in layer.blocks] for layer in shard._held]
    assert blocks == [[(0, 1), (5,), (2, 3, 4, 6, 7)], [(2, 3), (0, 1), (7,), (4, 5, 6)]]
    logits = run(shard, items).logits
    assert torch.allclose(logits, whole(directory, items).logits, atol=1e-4)


def test_many_small_blocks_are_joined(moe_checkpoint):
    directory, items = moe_checkpoint(), random_items(5)
    shard = Shard(directory, torch.float32, CPU)
    shard.keep_spares([[[expert] for expert in range(6)]] * 2)
    shard.activate(shard.stage(EVERYTHING, at_once=True), [EVERYTHING], LocalExchange())
    assert [len(layer.blocks) for layer in shard._held] == [1, 1]
    logits = run(shard, items).logits
    assert torch.allclose(logits, whole(directory, items).logits, atol=1e-4)


def test_spares_without_room_cost_nothing_that_runs(moe_checkpoint, monkeypatch):
    shard = Shard(moe_checkpoint(), torch.float32, CPU)
    shard.keep_spares([[[1]], []])
    monkeypatch.setattr(shard_module, "available_bytes", lambda device: 10)
    with pytest.raises(NoRoomError, match="1 experts need"):
        shard.keep_spares([[[1]], [[2]]])
    assert [layer.experts for layer in shard._spares] == [(1,), ()]
