"""Finds a directory's safetensors files and reads what they hold; `checkpoint` and `sharding` load from them.

Nothing in a file is trusted: names stay inside the directory, and each tensor has to be where the index says.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fewshard_models.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_TO_SAFETENSORS = (
    "Fewshard reads safetensors: load it where it was made, then model.save_pretrained(directory)"
)
_TRANSFORMERS_4 = "convert them with transformers 4, which still reads them, to safetensors"
_FOREIGN = (
    (
        ("adapter_config.json",),
        "a PEFT adapter",
        "merge it into its base model: model.merge_and_unload().save_pretrained(directory); "
        "if that is done, delete adapter_config.json",
    ),
    (("*.gguf",), "GGUF weights only", _TO_SAFETENSORS),
    (("*.onnx", "onnx/*.onnx"), "an ONNX graph only", _TO_SAFETENSORS),
    (("openvino*.xml",), "an OpenVINO graph only", _TO_SAFETENSORS),
    (("*.h5", "saved_model.pb"), "TensorFlow weights only", _TRANSFORMERS_4),
    (("*.msgpack",), "Flax weights only", _TRANSFORMERS_4),
    (
        ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl"),
        "pickle weights only",
        "they can run code when loaded and are refused: save them as safetensors with "
        "model.save_pretrained(directory)",
    ),
    (("*.safetensors",), "no weights under a name that transformers reads", f"name the file {SINGLE}"),
)
"""Patterns of file names, what such files are, and what to do with a directory that has no others."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """What the header of a file says of a tensor.

    dtype: in the spelling of safetensors, as F32, BF16, I8 and F8_E4M3.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of its values."""
        return math.prod(self.shape)

    @property
    def is_floating(self) -> bool:
        return self.dtype.startswith(("F", "BF"))


def weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files, chosen as transformers does; [] if there are none.

    Raises CheckpointError for an index that names files which are missing, or lie outside the directory.
    """
    if (directory / SINGLE).is_file():
        return [directory / SINGLE]
    if not (directory / INDEX).is_file():
        return []
    names = sorted(set(_weight_map(directory).values()))
    if strays := [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]:
        raise CheckpointError(
            f"{directory}/{INDEX} names files outside the directory: {', '.join(strays[:3])}"
        )
    if missing := [name for name in names if not (directory / name).is_file()]:
        raise CheckpointError(f"{directory} lacks {', '.join(missing[:5])}, which its index names")
    return [directory / name for name in names]


def require_safetensors(directory: Path) -> list[Path]:
    """Return the weight files. Raises CheckpointError, with what is there instead, if there are none."""
    # transformers adds the adapter where peft is installed; elsewhere it loads the base model and is silent.
    has_adapter = (directory / "adapter_config.json").is_file()
    if not has_adapter and (files := weight_files(directory)):
        return files
    for patterns, held, remedy in _FOREIGN:
        if any(any(directory.glob(pattern)) for pattern in patterns):
            raise CheckpointError(f"{directory} has {held}; {remedy}")
    raise CheckpointError(f"{directory} has no {SINGLE}")


def _weight_map(directory: Path) -> dict[str, str]:
    """Return the index: the file of each tensor. Raises CheckpointError if it cannot be read."""
    file = directory / INDEX
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
        if found and all(isinstance(name, str) for name in found.values()):
            return dict(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged: {error!r}; copy it again") from error
    raise CheckpointError(f"{file} is damaged: its weight_map names no files; copy it again")


def stored_tensors(directory: Path, files: Sequence[Path]) -> dict[str, StoredTensor]:
    """Read the headers: every tensor by name. No weights are read.

    Raises CheckpointError for a damaged file, a tensor in two files, or one that is not where the index says.
    """
    found: dict[str, StoredTensor] = {}
    for file in files:
        with opened(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118  not a mapping
                if name in found:
                    raise CheckpointError(
                        f"{name} is in {found[name].file.name} and in {file.name}; it must be in one file of "
                        f"{directory}"
                    )
                part = tensors.get_slice(name)
                found[name] = StoredTensor(file, part.get_dtype(), tuple(part.get_shape()))
    if files != [directory / SINGLE]:
        _require_index(directory, found)
    return found


def _require_index(directory: Path, found: dict[str, StoredTensor]) -> None:
    wrong = [
        f"{name} (in {file})"
        for name, file in _weight_map(directory).items()
        if name not in found or found[name].file != directory / file
    ]
    if wrong:
        raise CheckpointError(
            f"{directory}/{INDEX} names tensors that are not in their files: {', '.join(wrong[:3])}; "
            "copy the checkpoint again, whole"
        )


def read_tensors(stored: Mapping[str, StoredTensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield a copy of every tensor. Raises CheckpointError for a damaged file."""
    for file in dict.fromkeys(tensor.file for tensor in stored.values()):
        with opened(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118  not a mapping
                yield name, tensors.get_tensor(name).clone()


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """Open one file. Raises CheckpointError, also from within the block, if it is damaged."""
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged: {error}; {_how_to_mend(file)}") from error


def _how_to_mend(file: Path) -> str:
    try:
        with file.open("rb") as head:
            is_pointer = head.read(40).startswith(b"version https://git-lfs")
    except OSError:
        is_pointer = False
    return "it is a pointer of Git LFS: fetch the file with git lfs pull" if is_pointer else "copy it again"
