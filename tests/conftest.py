"""What the tests of several rooms share."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """A shell's background jobs ignore Ctrl-C, and so would everything that the tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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
