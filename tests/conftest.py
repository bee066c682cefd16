"""What the tests of several rooms share, and how `make test` shares the tests out among its workers."""

import functools
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Set what every test and every process that a test starts shall have."""
    config.addinivalue_line(
        "markers", "xdist_group(name): run by one worker; known where xdist is missing, too"
    )
    # A shell's background jobs ignore Ctrl-C, and so would everything that the tests start and interrupt.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # No test speaks TLS, but each new httpx client loads the machine's certificates: 40 to 60 ms of a core.
    os.environ.pop("SSL_CERT_FILE", None)
    os.environ["SSL_CERT_DIR"] = tempfile.mkdtemp(prefix="no-certificates-")
    # No test reads or fills the user's own measurements, and what is not about them need not wait for any.
    os.environ["FEWSHARD_CACHE"] = tempfile.mkdtemp(prefix="fewshard-cache-")
    os.environ["FEWSHARD_MEASURE"] = "0"
    with suppress(ImportError):  # where only kernels and models are tested, on a GPU
        from hypothesis import settings

        settings.register_profile("untimed", deadline=None)  # a busy machine is no fault of the code
        settings.load_profile("untimed")
    if hasattr(config, "workerinput"):
        # There is a worker for each core, so that further threads of torch's would only wait for each other.
        os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_unconfigure() -> None:
    """Leave no folder behind."""
    Path(os.environ["SSL_CERT_DIR"]).rmdir()
    shutil.rmtree(os.environ["FEWSHARD_CACHE"])


@functools.cache
def starts_servers(file: Path) -> bool:
    """Whether a file has tests that are marked `server`."""
    return "mark.server" in file.read_text(encoding="utf-8")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the servers, for which one worker has to take the longest."""
    items.sort(key=lambda item: not starts_servers(item.path))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give the tests of a file to one worker, since they share fixtures, and all tests with servers to one.

    Starting a Ray takes both cores of a small machine for seconds; two at a time would take longer than one
    after the other, and be late for their own time-outs. They also wait a lot, while the others compute.
    """
    from xdist.scheduler import LoadScopeScheduling

    class FileScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "servers" if starts_servers(config.rootpath / file) else file

    config.option.loadscopereorder = False
    return FileScheduling(config, log)


@pytest.fixture(scope="session")
def moe_checkpoint(tmp_path_factory) -> Callable[..., Path]:
    """Makes a small MoE text classifier with random weights, a directory as `load_checkpoint` takes it.

    The router's weights are large, so that its choices are far from ties.
    """
    import torch

    from fewshard_models.checkpoint import save_checkpoint
    from fewshard_models.text import FewshardTextConfig, FewshardTextForSequenceClassification

    def make(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: object) -> Path:
        torch.manual_seed(seed)
        settings: dict[str, object] = {
            "vocab_size": 101,
            "hidden_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "num_experts": 8,
            "moe_intermediate_size": 40,
            "moe_layers": [0, 2],
            "max_position_embeddings": 64,
            "initializer_range": 0.2,
            "pooling": "mean",
            "pooler_act": None,
        }
        network = FewshardTextForSequenceClassification(FewshardTextConfig(**{**settings, **changes}))
        for name, parameter in network.named_parameters():
            if name.endswith("router"):
                torch.nn.init.normal_(parameter, std=3.0)
        directory = tmp_path_factory.mktemp("moe")
        save_checkpoint(network.eval(), directory, dtype)
        return directory

    return make


@pytest.fixture
def local_hub(monkeypatch, tmp_path):
    """A Hugging Face Hub on this machine, which `huggingface_hub` asks instead of the real one."""
    from huggingface_hub import constants

    from local_hub import LocalHub

    one = LocalHub()
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, one.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", one.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield one
    one.close()
