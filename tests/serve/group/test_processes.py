"""Groups of real processes: the whole dev set, memory of each shard, and kills under load. Slow.

`benchmarks/chaos.py` does the last at length and prints a table; here its parts are run once.
"""

import asyncio
import importlib.util
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fewshard_core.values import TextInput
from fewshard_models.text import FewshardTextConfig, FewshardTextForSequenceClassification
from fewshard_serve.backends.load import load_model
from fewshard_serve.backends.sharded_text import load_sharded_model
from fewshard_serve.group.launcher import ProcessLauncher
from fewshard_serve.group.settings import ExpertsSettings

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def chaos():
    spec = importlib.util.spec_from_file_location("chaos", ROOT / "benchmarks/chaos.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["chaos"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def open_model():
    opened = []

    def make(path, shards, dtype="fp32", **settings):
        launcher = ProcessLauncher()
        experts = ExpertsSettings(shards, **settings)
        opened.append(load_sharded_model("m", str(path), "cpu", dtype, experts, launcher))
        return opened[-1], launcher

    yield make
    for model in opened:
        model.close()


@pytest.mark.data
@pytest.mark.skipif("FEWSHARD_DATA" not in os.environ, reason="needs the SST-2 dev set in FEWSHARD_DATA")
def test_four_shards_answer_the_whole_dev_set_as_one_process(open_model):
    from fewshard_models.data.sst2 import load_sst2

    texts, _ = load_sst2("dev")
    inputs = [TextInput(text) for text in texts]
    whole = load_model("whole", "zoo:sst2-moe", "cpu", "fp32")
    expected = whole.run(whole.prepare(inputs)).logits
    sharded, _ = open_model("zoo:sst2-moe", 4)
    items = sharded.prepare(inputs)
    for batch in (1, 64, 872):
        parts = [sharded.run(items[at : at + batch]).logits for at in range(0, len(items), batch)]
        apart = np.abs(np.concatenate(parts) - expected).max(axis=1)
        # A token next to a routing tie may go the other way (at most 1 % of the items).
        assert (apart > 1e-4).mean() <= 0.01
        assert np.median(apart) < 1e-5
    counts = sharded.expert_counts()
    assert (counts.shard_tokens.sum(axis=0) > 0).all()
    assert counts.shard_tokens.sum() == counts.tokens.sum()


def test_kills_and_a_stop_under_load_cost_no_answer(chaos, open_model):
    """Not the targets in time, which a quiet machine shows (`make chaos`): that nothing is lost or wrong."""
    model, launcher = open_model("zoo:sst2-moe", 3, "auto")
    expected = chaos.Expected.of("zoo:sst2-moe", chaos.sentences(20))
    phases = asyncio.run(storm(chaos, model, launcher, expected))
    assert [(phase.num_errors, phase.num_wrong) for phase in phases] == [(0, 0)] * len(phases)
    assert all(phase.full_s is not None for phase in phases[1:])
    assert all(phase.worst_s < 10 for phase in phases)


async def storm(chaos, model, launcher, expected):
    running = chaos.Chaos(model, launcher, expected, rate=25)
    phases = [
        await running.quiet(2),
        await running.phase("kill", lambda: chaos.kill(launcher, 2, signal.SIGKILL), 2),
        await running.phase("stop", lambda: chaos.kill(launcher, 1, signal.SIGSTOP), 2),
    ]
    await running._engine.drain(10)
    return phases


def memory_bytes(pid):
    """Private and file-mapped memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":") for line in lines)
    return 1024 * (int(fields["RssAnon"].split()[0]) + int(fields["RssFile"].split()[0]))


def write_large(directory):
    """2 GB with 64 experts in each of 8 layers, without a golden card; written layer by layer."""
    config = FewshardTextConfig(
        vocab_size=8192,
        hidden_size=512,
        num_hidden_layers=8,
        num_attention_heads=8,
        intermediate_size=1024,
        max_position_embeddings=128,
        num_experts=64,
        pooling="mean",
        pooler_act=None,
        architectures=["FewshardTextForSequenceClassification"],
    )
    with torch.device("meta"):
        shapes = {
            name: tensor.shape
            for name, tensor in FewshardTextForSequenceClassification(config).state_dict().items()
        }
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(*shape, generator=generator) * 0.05 for name, shape in shapes.items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(directory)
    return (directory / "model.safetensors").stat().st_size


def test_a_shard_of_four_holds_little_more_than_a_quarter(open_model, tmp_path):
    """Of a 2 GB checkpoint each shard takes at most 0.30 above what an empty shard takes; without spares."""
    size = write_large(tmp_path)
    assert size > 2e9
    for name in ("tokenizer.json", "tokenizer_config.json"):
        source = ROOT / "models/fewshard_models/zoo/sst2-moe" / name
        (tmp_path / name).write_bytes(source.read_bytes())
    _, idle = open_model("zoo:sst2-moe", 4, spare_mib=0)
    model, launcher = open_model(tmp_path, 4, spare_mib=0)
    items = model.prepare([TextInput("a gripping and often funny film")] * 8)
    logits = model.run(items).logits
    assert np.isfinite(logits).all()
    empty = max(memory_bytes(pid) for pid in idle.pids.values())
    shares = [(memory_bytes(pid) - empty) / size for pid in launcher.pids.values()]
    assert max(shares) <= 0.30, shares
    assert min(shares) > 0.2, "they do hold their experts"
    counts = model.expert_counts()
    assert (counts.shard_tokens.sum(axis=0) > 0).all()
    assert counts.shard_tokens.sum() == counts.tokens.sum() == 8 * counts.rows[0]
    lost_at = time.monotonic()
    os.kill(launcher.pids[2], signal.SIGKILL)
    assert np.abs(model.run(items).logits - logits).max() < 1e-4
    print(f"shares of {size / 1e9:.2f} GB: {[round(share, 3) for share in shares]}; ", end="")
    print(f"a third taken over by the survivors after {time.monotonic() - lost_at:.2f} s")
