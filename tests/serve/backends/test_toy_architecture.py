"""An architecture that one file defines is loaded by the API, served over HTTP, and run by the child."""

import asyncio
import importlib
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

import fewshard_models
from fewshard_core.values import EncodedImage, TextInput
from fewshard_models.counting import count_macs, macs_input
from fewshard_models.errors import CheckpointError
from fewshard_serve.backends.child_process import Loading
from fewshard_serve.backends.process import ModelProcess
from fewshard_serve.engine.settings import EngineSettings
from fewshard_serve.errors import UnusableItem
from fewshard_serve.http.host import HostApp
from fewshard_serve.rayserve.deployment_plan import HostSpec, ModelSpec
from fewshard_serve.rayserve.replica import Replica
from local_service import LocalService

TEXTS = ["eerie", "banana"]


@pytest.fixture(scope="module")
def toy():
    """The module, which registers its classes for good."""
    sys.path.append(str(Path(__file__).parent))
    yield importlib.import_module("toy_architecture")
    sys.path.remove(str(Path(__file__).parent))


@pytest.fixture(scope="module")
def directory(toy, tmp_path_factory):
    return toy.make(tmp_path_factory.mktemp("toy"))


def test_the_python_api_loads_it(toy, directory):
    model = fewshard_models.load(directory, device="cpu", dtype="fp32")
    assert isinstance(model, toy.ToyClassifier)
    assert (model.info.task, model.info.architecture) == ("text", "ToyForSequenceClassification")
    assert model(TEXTS).labels == ["many", "few"]
    assert count_macs(model.network.config) == 52
    assert macs_input(model.network.config) == "one text"


def test_it_is_served_over_http(toy, directory):
    model = toy.load_model("toy", str(directory), "cpu", "fp32")

    async def ask():
        spec = ModelSpec("toy", str(directory), "cpu", "fp32", EngineSettings())
        replica = Replica(HostSpec("models", "/v2/models", (spec,)), [model], None)
        app = HostApp(LocalService(replica.models))
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
            answer = await client.post("/v2/models/toy/classify", json={"inputs": TEXTS, "top_k": 1})
            about = await client.get("/v2/models/toy/config")
        unusable = [TextInput("e"), EncodedImage(b"")]
        with pytest.raises(UnusableItem, match="item 1: letters only"):
            await replica.models["toy"].classify(unusable, truncate=True, timeout_s=None)
        await replica.finish_drain(5)
        return answer, about

    answer, about = asyncio.run(ask())
    assert answer.status_code == 200, answer.text
    assert [best["label"] for (best,) in answer.json()["predictions"]] == ["many", "few"]
    assert about.json()["architecture"] == "ToyForSequenceClassification"


def test_it_runs_in_the_process_of_the_models(toy, directory):
    process = ModelProcess(num_threads=1)
    try:
        remote = process.load(Loading("toy_architecture:load_model", "toy", str(directory), "cpu", "fp32"))
        logits = remote.run(remote.prepare([TextInput(text) for text in TEXTS])).logits
        np.testing.assert_allclose(logits, [[0, 3], [0, -3]], atol=1e-6)
        assert remote(TEXTS).labels == ["many", "few"]
    finally:
        process.close()


def test_what_nobody_runs_is_refused_with_what_is_supported(toy, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    with pytest.raises(CheckpointError, match=r"BertModel; Fewshard serves .*ToyForSequenceClassification"):
        fewshard_models.load(tmp_path)
