"""The benchmarked servers: how to start, address and configure each, as shipped and tuned."""

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

from fewshard_core.formats import FORMATS
from fewshard_loadtest.peers.settings import SHIPPED, Setting, grid

MODEL = "bench"
OURS, ECHO = "fewshard", "echo"
SETTINGS_VARIABLE = "PEER_SETTINGS"
_APPS = Path(str(files("fewshard_loadtest.peers"))) / "apps"
_FEWSHARD_BIN = Path(sys.executable).parent
_QUIET = {
    "DO_NOT_TRACK": "1",
    "BENTOML_DO_NOT_TRACK": "True",
    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
}
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
    """

    bin: Path
    model: Path
    port: int
    work: Path
    setting: Setting


@dataclass(frozen=True, slots=True)
class Server:
    """One server.

    dialect: key of its adapter in `adapters.DIALECTS`.
    ready: path for which a GET succeeds once the server is ready.
    command: builds the command line; may write files to the launch's `work` folder.
    shipped: the setting with its defaults.
    note: explains its settings in the report.
    packages: packages whose versions the report shows; empty for our own servers.
    most_workers, wait_ms: limits of the tuning grid.
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
    most_workers: int = 2
    wait_ms: float | None = 5.0
    tuned_environment: tuple[tuple[str, str], ...] = ()

    @property
    def is_peer(self) -> bool:
        """Whether it runs in its own environment."""
        return bool(self.packages)

    def grid(self, dtype: str, num_cores: int) -> list[Setting]:
        """The candidate settings for tuning."""
        return grid(dtype, num_cores, self.most_workers, self.wait_ms)

    def environment(self, launch: Launch) -> dict[str, str]:
        """This process's environment variables without those that affect a server, plus the launch's."""
        given = {key: str(value) for key, value in asdict(launch).items() if key in ("model", "port")}
        torch_dtype = TORCH_DTYPES.get(launch.setting.dtype or "")
        settings = {**given, **asdict(launch.setting), "torch_dtype": torch_dtype}
        own = dict(self.tuned_environment) if launch.setting.name != SHIPPED else {}
        if launch.setting.threads is not None:
            own["OMP_NUM_THREADS"] = str(launch.setting.threads)
        return {**clean_environment(self.is_peer), **own, SETTINGS_VARIABLE: json.dumps(settings)}


def clean_environment(is_peer: bool = False) -> dict[str, str]:
    """This process's environment variables without thread counts and server settings.

    For a peer, Python's paths, which belong to another environment, are removed too, and telemetry is off.
    """
    kept = {key: value for key, value in os.environ.items() if not _is_private(key, is_peer)}
    return {**kept, **_QUIET} if is_peer else kept


def _is_private(variable: str, is_peer: bool) -> bool:
    if variable.startswith(("OMP_", "MKL_", "KMP_", "RAY_", "TORCH_", "BENTOML_", "INFINITY_")):
        return True
    return is_peer and variable.startswith(("PYTHON", "VIRTUAL_ENV"))


def _app(name: str) -> Callable[[Launch], list[str]]:
    return lambda launch: [str(launch.bin / "python"), str(_APPS / name)]


def _bentoml(launch: Launch) -> list[str]:
    return [
        *(str(launch.bin / "bentoml"), "serve", "bentoml_service:Classifier"),
        *("--working-dir", str(_APPS), "--host", "127.0.0.1", "--port", str(launch.port)),
    ]


def _infinity(launch: Launch) -> list[str]:
    setting = launch.setting
    command = [
        *(
            str(launch.bin / "infinity_emb"),
            "v2",
            "--model-id",
            str(launch.model),
            "--served-model-name",
            MODEL,
        ),
        *("--device", "cpu", "--engine", "torch", "--host", "127.0.0.1", "--port", str(launch.port)),
    ]
    batch = [] if setting.batch is None else ["--batch-size", str(setting.batch)]
    dtype = [] if setting.name == SHIPPED else ["--dtype", TORCH_DTYPES[str(setting.dtype)]]
    return [*command, *batch, *dtype]


def _fewshard(launch: Launch) -> list[str]:
    """Writes the configuration as JSON, which is valid YAML."""
    dtype = launch.setting.dtype or "auto"
    model = {"name": MODEL, "path": str(launch.model), "device": "cpu", "dtype": dtype}
    config = launch.work / "fewshard.yaml"
    config.write_text(json.dumps({"models": [model]}), encoding="utf-8")
    return [str(_FEWSHARD_BIN / "fewshard"), "serve", str(config), "--port", str(launch.port)]


def echo_command(python: str, port: int) -> list[str]:
    """Command for the application that does nothing; it needs Fewshard's own environment."""
    return [python, str(_APPS / "echo.py"), "--port", str(port)]


FEWSHARD = Server(
    name=OURS,
    title="Fewshard",
    dialect="fewshard",
    ready="/v2/health/ready",
    command=_fewshard,
    shipped=Setting(SHIPPED, dtype=None),
    note="Its defaults; the dtype is the one it chooses on this machine.",
)
NOTHING = Server(
    name=ECHO,
    title="echo",
    dialect="fewshard",
    ready="/v2/health/ready",
    command=lambda launch: echo_command(sys.executable, launch.port),
    shipped=Setting(SHIPPED, dtype=None),
    note="An application that does nothing, deployed as a Fewshard host is: what Ray and HAProxy cost.",
)
PEERS = (
    Server(
        name="litserve",
        title="LitServe",
        dialect="litserve",
        ready="/health",
        command=_app("litserve_app.py"),
        shipped=Setting(SHIPPED, batch=8, wait_ms=100),
        note="A Hugging Face model, padded batches; as shipped: the batching of its API's example.",
        packages=("litserve", "torch", "transformers"),
    ),
    Server(
        name="rayserve",
        title="Ray Serve",
        dialect="rayserve",
        ready="/-/healthz",
        command=_app("rayserve_app.py"),
        shipped=Setting(SHIPPED),
        note=(
            "`@serve.batch` and the transformers pipeline; as shipped: every default, and the pipeline "
            "called with the list of texts as its batching tutorial does. Tuned also gets the pipeline's "
            "`batch_size`, room for 1,000 requests a replica and Serve's own throughput mode."
        ),
        packages=("ray", "torch", "transformers"),
        tuned_environment=(("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1"),),
    ),
    Server(
        name="bentoml",
        title="BentoML",
        dialect="bentoml",
        ready="/readyz",
        command=_bentoml,
        shipped=Setting(SHIPPED),
        note="A batchable API round a Hugging Face model; as shipped: its adaptive batching's defaults.",
        packages=("bentoml", "torch", "transformers"),
        wait_ms=None,
    ),
    Server(
        name="infinity",
        title="Infinity",
        dialect="infinity",
        ready="/health",
        command=_infinity,
        shipped=Setting(SHIPPED),
        note="Its own command and its torch engine; it has one worker, which waits as long as it likes.",
        packages=("infinity_emb", "torch", "transformers"),
        most_workers=1,
        wait_ms=None,
    ),
)


def peers(names: list[str] | None) -> tuple[Server, ...]:
    """The named peers, in the catalogue's order; None for all. Raises ValueError for an unknown name."""
    known = {server.name: server for server in PEERS}
    for name in names or ():
        if name not in known:
            raise ValueError(f"no peer is named {name!r}; there are: {', '.join(known)}")
    return tuple(server for server in PEERS if names is None or server.name in names)


def titles() -> Mapping[str, str]:
    """Name of each server in the report."""
    return {server.name: server.title for server in (FEWSHARD, NOTHING, *PEERS)}
