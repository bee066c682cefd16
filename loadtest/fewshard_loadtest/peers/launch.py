"""How a benchmarked server is started: its parameters, its environment variables. `catalogue` lists them."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from fewshard_core.formats import FORMATS
from fewshard_loadtest.peers.settings import SHIPPED, Setting, grid

SETTINGS_VARIABLE = "PEER_SETTINGS"
_QUIET = {
    "DO_NOT_TRACK": "1",
    "BENTOML_DO_NOT_TRACK": "True",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "CI": "true",  # the one variable that the telemetry of OpenVINO and NNCF heeds
}
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads that have nothing to do give their core to the others."""
TORCH_DTYPES = {each.name: each.storage for each in FORMATS if each.is_cast}
"""Names of a setting's dtypes in torch and Infinity."""


@dataclass(frozen=True, slots=True)
class Launch:
    """Parameters for starting a server.

    bin: folder of its environment's programs.
    model: the checkpoint.
    port: port to listen on.
    work: folder for files.
    setting: how to run it.
    engines: folder of the checkpoint's exports, where there are any.
    """

    bin: Path
    model: Path
    port: int
    work: Path
    setting: Setting
    engines: Path | None = None


@dataclass(frozen=True, slots=True)
class Server:
    """One server.

    dialect: key of its adapter in `adapters.DIALECTS`.
    ready: path for which a GET succeeds once the server is ready.
    command: builds the command line; may write files to the launch's `work` folder.
    shipped: the setting with its defaults.
    note: explains its settings in the report.
    packages: packages whose versions the report shows; empty for our own servers.
    engine: what runs the model: a key of `engines.FORMATS`.
    is_assembled: its owner has to put it together, so that only tuned settings are measured.
    pins: name of its environment's pins; empty for its own name.
    most_workers, wait_ms, can_cut: limits of the tuning grid.
    tuned_environment: environment variables of tuned settings.
    """

    name: str
    title: str
    dialect: str
    ready: str
    command: Callable[[Launch], list[str]]
    shipped: Setting
    note: str
    packages: tuple[str, ...] = ()
    engine: str = "torch"
    is_assembled: bool = False
    pins: str = ""
    most_workers: int = 2
    wait_ms: float | None = 5.0
    can_cut: bool = True
    tuned_environment: tuple[tuple[str, str], ...] = ()

    @property
    def is_peer(self) -> bool:
        """Whether it runs in its own environment."""
        return bool(self.packages)

    @property
    def environment_name(self) -> str:
        """The name of its environment and of the pins in it."""
        return self.pins or self.name

    def grid(self, dtype: str, num_cores: int, is_quick: bool = False) -> list[Setting]:
        """The candidate settings for tuning."""
        return grid(dtype, num_cores, self.most_workers, self.wait_ms, self.can_cut, is_quick)

    def environment(self, launch: Launch) -> dict[str, str]:
        """This process's environment variables without those that affect a server, plus the launch's."""
        setting = launch.setting
        own = {}
        if setting.name != SHIPPED:
            own = {**(PASSIVE if self.is_peer else {}), **dict(self.tuned_environment)}
        if setting.threads is not None:
            own["OMP_NUM_THREADS"] = str(setting.threads)
        told = {
            **asdict(setting),
            "model": str(launch.model),
            "port": str(launch.port),
            "engine": self.engine,
            "engines": str(launch.engines),
            "torch_dtype": TORCH_DTYPES.get(setting.dtype or ""),
        }
        return {**clean_environment(self.is_peer), **own, SETTINGS_VARIABLE: json.dumps(told)}


def clean_environment(is_peer: bool = False) -> dict[str, str]:
    """This process's environment variables without thread counts and server settings.

    For a peer, Python's paths, which belong to another environment, are removed too, and telemetry is off.
    """
    kept = {key: value for key, value in os.environ.items() if not _is_private(key, is_peer)}
    return {**kept, **_QUIET} if is_peer else kept


def _is_private(variable: str, is_peer: bool) -> bool:
    if variable.startswith(
        ("OMP_", "GOMP_", "MKL_", "KMP_", "MOSEC_", "RAY_", "TORCH_", "BENTOML_", "INFINITY_")
    ):
        return True
    return is_peer and variable.startswith(("PYTHON", "VIRTUAL_ENV"))
