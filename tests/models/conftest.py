"""A small made-up data folder and encoder, so that recipes run in seconds without the real ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizer

GOOD = ["good", "bright", "funny", "warm"]
BAD = ["bad", "dull", "slow", "cold"]
PLAIN = ["the", "a", "film", "plot", "actor", "is", "and", "story"]


def write_sst2(folder: Path, split: str, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    lines = ["sentence\tlabel"]
    for _ in range(rows):
        label = int(rng.integers(2))
        words = [*rng.choice(PLAIN, rng.integers(2, 8)), rng.choice(GOOD if label else BAD)]
        lines.append(f"{' '.join(rng.permutation(words))} \t{label}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_cifar10(folder: Path, name: str, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 10, rows).astype(np.uint8)
    images = rng.integers(0, 80, (rows, 32, 32, 3)).astype(np.uint8)
    # Each class has its own brightness, which even a short run can learn.
    images += labels[:, None, None, None] * 17
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"{name}.npz", images=images, labels=labels)


@pytest.fixture(scope="session")
def small_data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_sst2(folder / "sst2", "train", 240, 0)
    write_sst2(folder / "sst2", "dev", 80, 1)
    write_cifar10(folder / "cifar10", "train-0", 96, 2)
    write_cifar10(folder / "cifar10", "train-1", 96, 3)
    write_cifar10(folder / "cifar10", "test", 60, 4)
    return folder


@pytest.fixture
def data(small_data, monkeypatch) -> Path:
    monkeypatch.setenv("FEWSHARD_DATA", str(small_data))
    return small_data


@pytest.fixture(scope="session")
def small_encoder(tmp_path_factory) -> Path:
    """A six-layer BERT with random weights, wide enough for the tiny tier's recipes."""
    folder = tmp_path_factory.mktemp("encoder")
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *PLAIN]
    pieces += [piece for letter in "abcdefghijklmnopqrstuvwxyz" for piece in (letter, f"##{letter}")]
    pieces += [f"filler{number}" for number in range(150)]
    BertTokenizer(vocab={piece: id_ for id_, piece in enumerate(pieces)}, do_lower_case=True).save_pretrained(
        folder
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=96,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=1024,
        max_position_embeddings=128,
    )
    BertModel(config).save_pretrained(folder)
    return folder
