"""transformers' Auto classes load our checkpoints after `import fewshard_models`, whichever comes first."""

import subprocess
import sys

import pytest

LOAD = """
from fewshard_models.checkpoint import resolve
print(type(AutoModelForSequenceClassification.from_pretrained(resolve("zoo:sst2-narrow"))).__name__)
print(type(AutoModelForImageClassification.from_pretrained(resolve("zoo:cifar10-narrow"))).__name__)
"""
AUTO = "from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification\n"
OURS = "import fewshard_models\n"
LIGHT = """
import sys
assert not {"torch", "transformers"} & set(sys.modules), "import fewshard_models is not light"
"""


def test_a_process_of_tokenizers_alone_stays_without_networks() -> None:
    program = """
import sys
from fewshard_models.auto_classes import register_only_by_import
register_only_by_import()
from transformers import AutoTokenizer
AutoTokenizer.from_pretrained
print([name for name in sys.modules if name.startswith(("fewshard_models.text", "fewshard_kernels"))])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize("program", [OURS + LIGHT + AUTO, AUTO + OURS], ids=["ours first", "theirs first"])
def test_our_checkpoints_load_by_the_auto_classes(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", program + LOAD], capture_output=True, text=True, check=False)
    assert done.stdout.split() == [
        "FewshardTextForSequenceClassification",
        "FewshardImageForImageClassification",
    ], done.stderr
