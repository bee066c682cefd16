"""Checkpoints are loaded and run without torch's compiler, which works all the same when it is asked for."""

import subprocess
import sys

import torch
from torch import nn

from fewshard_models.lazy_compiler import no_draws_on_meta

LOADS = """
import sys
from fewshard_models.lazy_compiler import COMPILER, import_networks
import_networks()
from fewshard_models.classifier.load import load
for name, given in (("sst2-moe", ["a warm film"]), ("cifar10-dst", [bytes_of_image])):
    assert load(f"zoo:{name}", device="cpu")(given).logits.shape[0] == 1
assert not {COMPILER, "torch.distributed.tensor", "sympy"} & set(sys.modules)
import torch
doubled = torch.compile(lambda x: 2 * x, backend="eager")
assert doubled(torch.ones(3)).tolist() == [2, 2, 2]
assert COMPILER in sys.modules and torch.distributed.is_available()
import_networks()
"""
IMAGE = """
import io
import numpy as np
from PIL import Image
file = io.BytesIO()
Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(file, "PNG")
bytes_of_image = file.getvalue()
"""


def test_the_compiler_waits_until_something_is_compiled():
    done = subprocess.run([sys.executable, "-c", IMAGE + LOADS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_weights_are_drawn_where_they_have_numbers_alone():
    original = nn.init.normal_
    with no_draws_on_meta():
        drawn = nn.Embedding(100, 8)
        undrawn = nn.Embedding(100, 8, device="meta")
    assert nn.init.normal_ is original
    assert undrawn.weight.is_meta
    assert drawn.weight.std().isclose(torch.tensor(1.0), atol=0.2)
