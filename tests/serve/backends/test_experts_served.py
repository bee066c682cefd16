"""A Qwen3-MoE of 64 experts, served from the process of the models: what is counted is what was sent."""

import asyncio
import os
import subprocess
import sys

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fewshard_serve.backends.child_process import Loading
from fewshard_serve.backends.process import ModelProcess
from fewshard_serve.engine.settings import EngineSettings
from fewshard_serve.http.host import HostApp
from fewshard_serve.rayserve.deployment_plan import HostSpec, ModelSpec
from fewshard_serve.rayserve.replica import Replica
from local_service import LocalService

MAKE = """
import sys
from pathlib import Path
from fewshard_models.conformance.text import write_checkpoint
write_checkpoint(Path(sys.argv[1]), "qwen3_moe", num_local_experts=64, num_experts_per_tok=8)
"""
TEXTS = ["w1 w2 w3", "w5", "w7 w8 w9 w10 w11 w12 w13 w14", "w30 w2 w7 w8 w9 w10 w11 w12 w13"]
MODEL = "/v2/models/moe"
OWN = "fewshard_serve.backends.load:load_model"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("qwen3-moe")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", MAKE, str(directory)], check=True, env=environment)
    return directory


def test_a_moe_of_64_experts_is_counted_and_seen(directory):
    process = ModelProcess(num_threads=1)
    try:
        model = process.load(Loading(OWN, "moe", str(directory), "cpu", "fp32"))
        asyncio.run(_ask(directory, model))
    finally:
        process.close()


async def _ask(directory, model):
    spec = ModelSpec("moe", str(directory), "cpu", "fp32", EngineSettings())
    replica = Replica(HostSpec("models", "/v2/models", (spec,)), [model], None)
    app = HostApp(LocalService(replica.models))
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
        body = {"inputs": TEXTS, "routing": True}
        answer = (await client.post(f"{MODEL}/classify", json=body)).raise_for_status().json()
        experts = (await client.get(f"{MODEL}/experts")).raise_for_status().json()
        about = (await client.get(f"{MODEL}/config")).raise_for_status().json()
        text = replica.metrics.render().decode()
    await replica.finish_drain(5)
    assert about["kind"] == "moe"
    own = answer["usage"]["tokens"]
    assert own == sum(len(each["tokens"]) for each in answer["routing"])
    assert (experts["num_layers"], experts["num_experts"], experts["top_k"]) == (2, 64, 8)
    for number, layer in enumerate(experts["layers"]):
        assert layer["rows"] == own
        told = [expert for each in answer["routing"] for token in each["experts"][number] for expert in token]
        assert layer["tokens_total"] == [told.count(expert) for expert in range(64)]
        assert 0 < layer["router_entropy_ratio"] < 1
        assert layer["dead_experts"] == [expert for expert in range(64) if expert not in told]
    samples = [each for family in text_string_to_metric_families(text) for each in family.samples]
    totals = [each for each in samples if each.name == "fewshard_expert_tokens_total"]
    assert len(totals) == 2 * 64
    assert sum(each.value for each in totals) == 2 * 8 * own
    assert len(samples) <= 2000
