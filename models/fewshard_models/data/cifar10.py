"""CIFAR-10 (Krizhevsky 2009) as arrays."""

import zlib
from lzma import LZMAError
from pathlib import Path
from typing import Literal
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from fewshard_models.data import data_dir
from fewshard_models.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)


def load_cifar10(split: Literal["train", "test"]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images uint8 [N, 32, 32, 3] and labels int64 [N], in the official order. Raises DataError."""
    folder = data_dir() / "cifar10"
    files = sorted(folder.glob(f"{split}*.npz"))
    if not files:
        raise DataError(f"no {split}*.npz in {folder}; each file holds arrays `images` and `labels`")
    parts = [_read(file) for file in files]
    return np.concatenate([images for images, _ in parts]), np.concatenate([labels for _, labels in parts])


def _read(file: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"]
    except KeyError as error:
        raise DataError(f"{file} lacks an array: {error.args[0]}; it holds `images` and `labels`") from error
    except (OSError, ValueError, EOFError, BadZipFile, LZMAError, zlib.error) as error:
        raise DataError(f"{file} is damaged or no .npz archive: {error}; copy it again") from error
    if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3):
        raise DataError(f"{file}: expected uint8 images [N, 32, 32, 3], got {images.dtype} {images.shape}")
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
        raise DataError(
            f"{file}: expected {len(images)} whole-number labels, got {labels.dtype} {labels.shape}"
        )
    bad = np.flatnonzero((labels < 0) | (labels >= len(CLASSES)))
    if len(bad):
        raise DataError(
            f"{file}, row {bad[0]}: the label is {labels[bad[0]]}; it lies outside 0..{len(CLASSES) - 1}"
        )
    return images, labels.astype(np.int64)
