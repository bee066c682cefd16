"""A replica whose models run in another process prepares requests without torch and without transformers."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fewshard_core.values import PixelArray, TextInput
from fewshard_models.checkpoint import ZOO
from fewshard_serve.backends.child_process import Loading
from fewshard_serve.backends.process import ModelProcess

REPLICA = """
import pickle, sys
from pathlib import Path
from fewshard_serve.rayserve import deployment, gateway
given = pickle.loads(Path(sys.argv[1]).read_bytes())
made = [preprocessor.items(inputs, True) for preprocessor, inputs in given]
Path(sys.argv[2]).write_bytes(pickle.dumps(made))
print(*({"torch", "transformers"} & set(sys.modules)))
"""
INPUTS = {
    "text": [TextInput("a warm and funny film", wants_routing=True), TextInput("dull " * 900, "a pair")],
    "image": [PixelArray(np.arange(60 * 40 * 3, dtype=np.uint8).reshape(60, 40, 3))],
}


@pytest.fixture(scope="module")
def models():
    """Every bundled model, loaded as a replica loads it."""
    process = ModelProcess(num_threads=1)
    load = "fewshard_serve.backends.load:load_model"
    names = sorted(each.name for each in ZOO.iterdir())
    yield [process.load(Loading(load, name, f"zoo:{name}", "cpu", "fp32")) for name in names]
    process.close()


def test_a_replica_of_the_zoo_imports_neither(models, tmp_path):
    given = [(model.preprocessor, INPUTS[model.info.task]) for model in models]
    Path(tmp_path, "given").write_bytes(pickle.dumps(given))
    done = subprocess.run(
        [sys.executable, "-c", REPLICA, tmp_path / "given", tmp_path / "made"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
    made = pickle.loads(Path(tmp_path, "made").read_bytes())
    for model, items in zip(models, made, strict=True):
        here = model.prepare(INPUTS[model.info.task])
        assert np.array_equal(model.run(items).logits, model.run(here).logits)
