"""`fewshard evaluate`, `fewshard table2` and the server give the same logits for checkpoints of others.

`evaluate` runs in fp32, `table2` in the number format that the server chooses.
"""

import asyncio
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from fewshard_core.formats import FORMATS
from fewshard_models.checkpoint import resolve
from fewshard_models.classifier.load import load
from fewshard_models.classifier.network import NetworkClassifier
from fewshard_models.evaluation.accuracy import evaluate
from fewshard_models.evaluation.store import Asked, Found, measure
from fewshard_models.evaluation.tasks import held_out
from fewshard_serve.backends.load import load_model
from fewshard_serve.engine.settings import EngineSettings
from fewshard_serve.http.host import HostApp
from fewshard_serve.rayserve.deployment_plan import HostSpec, ModelSpec
from fewshard_serve.rayserve.replica import Replica
from local_service import LocalService

pytestmark = [pytest.mark.slow, pytest.mark.data, pytest.mark.usefixtures("data_dir")]

TYPES = ["bert", "roberta", "mpnet", "xlnet", "fnet", "gpt2"]
"""Two that run packed, and others that are padded at either side, or not at all."""
LABELS = {"id2label": {0: "positive", 1: "negative"}, "label2id": {"positive": 0, "negative": 1}}
"""In the order that is not the data set's."""
NUM_ROWS = 60
Save = Callable[[str], Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes a random checkpoint of a type, with the tokenizer of a bundled model."""
    import transformers as tf

    from fewshard_models.conformance.tiny import shake, tiny_config

    def make(model_type: str) -> Path:
        zoo, directory = resolve("zoo:sst2-dense"), tmp_path / model_type
        tokenizer = tf.AutoTokenizer.from_pretrained(zoo)
        config = tiny_config(model_type, len(tokenizer), **LABELS, pad_token_id=tokenizer.pad_token_id)
        shake(tf.AutoModelForSequenceClassification.from_config(config)).save_pretrained(directory)
        for file in zoo.glob("tokenizer*"):
            shutil.copy(file, directory)
        return directory

    return make


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[NDArray[np.float32]]]:
    """The logits of every call of a classifier, in the order of its items."""
    found: list[NDArray[np.float32]] = []
    run_all = NetworkClassifier.run_all

    def recorded(self: NetworkClassifier, items: object) -> NDArray[np.float32]:
        found.append(run_all(self, items))  # type: ignore[arg-type]
        return found[-1]

    monkeypatch.setattr(NetworkClassifier, "run_all", recorded)
    return found


async def served(directory: Path, texts: list[str], dtype: str) -> NDArray[np.float32]:
    """Logits over HTTP, of requests of seven texts that are in flight at once."""
    model = load_model("foreign", str(directory), "cpu", dtype)
    spec = HostSpec(
        "models", "/v2/models", (ModelSpec("foreign", str(directory), "cpu", dtype, EngineSettings()),)
    )
    replica = Replica(spec, [model], None)
    app = HostApp(LocalService(replica.models))
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://host", timeout=60
    ) as client:

        async def ask(part: list[str]) -> list[list[float]]:
            tensor = {"name": "text", "datatype": "BYTES", "shape": [len(part)], "data": part}
            body = {"inputs": [tensor], "outputs": [{"name": "logits"}]}
            answer = await client.post("/v2/models/foreign/infer", content=json.dumps(body))
            (output,) = answer.raise_for_status().json()["outputs"]
            return np.array(output["data"]).reshape(output["shape"]).tolist()

        parts = [texts[at : at + 7] for at in range(0, len(texts), 7)]
        answers = await asyncio.gather(*(ask(part) for part in parts))
    await replica.finish_drain(1)
    return np.array([row for rows in answers for row in rows], dtype=np.float32)


@pytest.mark.parametrize("model_type", TYPES)
def test_the_same_rows_have_the_same_logits(
    model_type: str, save: Save, seen: list[NDArray[np.float32]], tmp_path: Path
) -> None:
    directory = save(model_type)
    texts = list(held_out("text", NUM_ROWS).inputs)
    evaluate(directory, NUM_ROWS)
    by_evaluate = seen[0]
    seen.clear()
    results = tmp_path / "results"
    measure([Found("sst2-dense", 0, directory)], Asked("tiny", results, False, False, NUM_ROWS))
    by_table2 = seen[0]
    served_fp32 = asyncio.run(served(directory, texts, "fp32"))
    served_fast = asyncio.run(served(directory, texts, "auto"))
    dtype = load(directory, "cpu").info.dtype
    alone = np.concatenate([load(directory, "cpu", "fp32")([text]).logits for text in texts[:10]])
    print(
        f"{model_type}, {len(texts)} rows, largest differences: server and evaluate (fp32) "
        f"{off(served_fp32, by_evaluate):.1e}, server and table2 ({dtype}) {off(served_fast, by_table2):.1e}"
    )
    assert by_evaluate.shape == (NUM_ROWS, 2)
    assert by_evaluate.std(axis=0).max() > 1e-3
    assert off(served_fp32, by_evaluate) < 1e-4
    assert off(alone, by_evaluate[:10]) < 1e-4
    assert off(served_fast, by_table2) < FORMATS[dtype].tolerance
    assert off(by_table2, by_evaluate) < FORMATS[dtype].tolerance


def off(some: NDArray[np.float32], others: NDArray[np.float32]) -> float:
    return float(np.abs(some - others).max())
