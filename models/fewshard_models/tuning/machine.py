"""Names the machine that a measurement holds for; `cache` keeps a file for each."""

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fewshard_core.cpu import available_cores, cpu_flags, cpu_name, cpu_quota

VERSION = 1
"""Raise it when a measurement means something else than before: older files are then ignored."""
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
"""Environment variables that keep instructions of the CPU from use."""


@dataclass(frozen=True, slots=True)
class Machine:
    """All that a time depends on beside the model.

    cpu: its model name.
    flags: a digest of its features.
    cores: whole cores that this process may use.
    quota: the container's quota in cores; None without one.
    limits: environment variables that keep instructions from use, with their values.
    torch: its version.
    version: of the measurement.
    """

    cpu: str
    flags: str
    cores: int
    quota: float | None
    limits: dict[str, str]
    torch: str
    version: int = VERSION

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def file_name(self) -> str:
        """A name for its file: the CPU in words, and a digest of the rest."""
        words = re.sub(r"[^a-z0-9]+", "-", self.cpu.lower()).strip("-")[:48]
        return f"{words}-{digest(self.as_json())}.json"


def this_machine() -> Machine:
    """Return the machine as this process may use it."""
    limits = {name: os.environ[name] for name in _LIMITS if name in os.environ}
    return Machine(
        cpu_name(), digest(cpu_flags()), available_cores(), cpu_quota(), limits, str(torch.__version__)
    )


def digest(value: Any) -> str:
    """Return a short digest of a JSON value."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def cache_folder() -> Path | None:
    """Return where measurements are kept: below FEWSHARD_CACHE, or the user's cache; None without a home."""
    if own := os.environ.get("FEWSHARD_CACHE"):
        return Path(own).expanduser() / "tuning"
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fewshard" / "tuning"
    except RuntimeError:  # no home
        return None
