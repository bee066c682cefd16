"""A Qwen3-MoE over several shards behind the engine's interface: its answers, its counts, a lost shard."""

import numpy as np
import pytest

from fewshard_core.values import TextInput
from fewshard_models.conformance.text import write_checkpoint
from fewshard_models.conformance.words import SHORT
from fewshard_serve.backends.load import load_model
from fewshard_serve.backends.sharded_text import load_sharded_model
from fewshard_serve.errors import NotReady
from fewshard_serve.group.settings import ExpertsSettings

INPUTS = [TextInput(text) for text in SHORT]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("qwen3-moe")
    write_checkpoint(directory, "qwen3_moe", num_local_experts=8)
    return directory


@pytest.fixture
def load(kit):
    opened = []

    def make(path, **experts):
        settings = ExpertsSettings(**{"shards": 2, "exchange_timeout_ms": 2000.0, **experts})
        launcher = kit.ThreadLauncher()
        model = load_sharded_model("m", str(path), "cpu", "fp32", settings, launcher)
        opened.append(model)
        return model, launcher

    yield make
    for model in opened:
        model.close()


def test_it_answers_and_counts_as_the_whole_model(load, directory):
    whole = load_model("m", str(directory), "cpu", "fp32")
    whole.self_check()
    sharded, _ = load(directory)
    for field in ("kind", "labels", "architecture", "max_tokens", "dtype"):
        assert getattr(sharded.info, field) == getattr(whole.info, field)
    items = sharded.prepare(INPUTS)
    assert [item.features for item in items] == [item.features for item in whole.prepare(INPUTS)]
    logits = sharded.run(items).logits
    np.testing.assert_allclose(logits, whole.run(items).logits, atol=1e-4)
    alone = [sharded.run([item]).logits[0] for item in items]
    np.testing.assert_allclose(alone, logits, atol=1e-4)
    counts, own = sharded.expert_counts(), sum(item.num_tokens for item in items)
    assert (counts.tokens == 2 * whole.expert_counts().tokens).all()
    assert (counts.rows == 2 * own).all()
    assert counts.shard_tokens.sum() == counts.tokens.sum()


def test_more_shards_than_experts_and_other_architectures_are_refused(load, directory, tmp_path):
    with pytest.raises(NotReady, match="9 shards and 8 experts a layer; use at most 8 shards"):
        load(directory, shards=9)
    write_checkpoint(tmp_path, "jetmoe")
    with pytest.raises(NotReady, match=r"is a jetmoe model; fewshard_text, .* can be sharded"):
        load(tmp_path)
