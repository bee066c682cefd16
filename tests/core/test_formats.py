"""The registry of number formats: one entry is configured, loaded, checked and refused by name."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import fewshard_models
from fewshard_core.formats import AUTO, FORMATS, NumberFormat
from fewshard_models.errors import CheckpointError
from fewshard_serve.backends.sharded_text import load_sharded_model
from fewshard_serve.config_file import load_config
from fewshard_serve.errors import ConfigError, NotReady
from fewshard_serve.group.launcher import ProcessLauncher
from fewshard_serve.group.settings import ExpertsSettings

TEXT = "a gripping and often funny film"

# All there is of a new format: sixteen bits to store, single precision to compute.
HALF_WEIGHTS = NumberFormat(
    name="half-weights",
    storage="bfloat16",
    compute="float32",
    tolerance=6e-2,
    kernel_tolerance=1e-5,
    multiplies=lambda device: device == "cpu",
    prepare=lambda network: network.float(),
)


@pytest.fixture
def half_weights() -> Iterator[NumberFormat]:
    yield FORMATS.register(HALF_WEIGHTS)
    FORMATS.remove(HALF_WEIGHTS.name)


def configured(folder: Path, dtype: str) -> Path:
    file = folder / "fewshard.yaml"
    file.write_text(f"models: [{{name: a, path: ./a, dtype: {dtype}}}]\n")
    return file


@pytest.mark.usefixtures("half_weights")
def test_a_new_format_is_configured_loaded_and_checked(tmp_path: Path) -> None:
    assert load_config(configured(tmp_path, "half-weights")).models[0].dtype == "half-weights"
    model = fewshard_models.load("zoo:sst2-narrow", "cpu", "half-weights")
    assert model.info.dtype == "half-weights"
    assert {parameter.dtype for parameter in model.network.parameters()} == {torch.float32}
    model.self_check()
    exact = fewshard_models.load("zoo:sst2-narrow", "cpu", "fp32")([TEXT]).logits
    difference = np.abs(model([TEXT]).logits - exact).max()
    assert 0 < difference < HALF_WEIGHTS.tolerance


@pytest.mark.usefixtures("half_weights")
def test_shards_refuse_a_format_that_casting_does_not_make() -> None:
    """They load weights expert by expert, so `prepare` would never see them."""
    with pytest.raises(NotReady, match="half-weights cannot be used over shards"):
        load_sharded_model("m", "zoo:sst2-moe", "cpu", "half-weights", ExpertsSettings(2), ProcessLauncher())


def test_the_golden_check_uses_the_formats_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fewshard_models.load("zoo:sst2-narrow", "cpu", "bf16")
    model.self_check()
    strict = replace(FORMATS["bf16"], tolerance=1e-7)
    monkeypatch.setitem(FORMATS._formats, "bf16", strict)
    with pytest.raises(CheckpointError, match=r"more than 1e-07 \(bf16\)"):
        model.self_check()


def test_a_format_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'auto', 'fp32', 'bf16', 'fp16' or 'int8'"):
        load_config(configured(tmp_path, "half-weights"))
    with pytest.raises(ValueError, match="no number format 'half-weights'; there are fp32, bf16, fp16, int8"):
        fewshard_models.load("zoo:sst2-narrow", "cpu", "half-weights")


@pytest.mark.parametrize("name", [AUTO, "fp32"])
def test_a_name_is_taken_once(name: str) -> None:
    with pytest.raises(ValueError, match="already"):
        FORMATS.register(replace(HALF_WEIGHTS, name=name))


def test_a_format_is_found_by_the_dtype_of_its_weights() -> None:
    assert FORMATS.of_storage(torch.bfloat16).name == "bf16"
    with pytest.raises(ValueError, match="no number format holds its weights in int64"):
        FORMATS.of_storage(torch.int64)
