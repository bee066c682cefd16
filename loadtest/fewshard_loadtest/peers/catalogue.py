"""The benchmarked servers: how to start, address and configure each, as shipped and tuned."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from fewshard_loadtest.peers.launch import TORCH_DTYPES, Launch, Server
from fewshard_loadtest.peers.settings import SHIPPED, Setting

MODEL = "bench"
OURS, ECHO = "fewshard", "echo"
_APPS = Path(str(files("fewshard_loadtest.peers"))) / "apps"
_FEWSHARD_BIN = Path(sys.executable).parent


def _app(name: str) -> Callable[[Launch], list[str]]:
    return lambda launch: [str(launch.bin / "python"), str(_APPS / name)]


def _bentoml(launch: Launch) -> list[str]:
    return [
        *(str(launch.bin / "bentoml"), "serve", "bentoml_service:Classifier"),
        *("--working-dir", str(_APPS), "--host", "127.0.0.1", "--port", str(launch.port)),
    ]


def _mosec(launch: Launch) -> list[str]:
    program = [str(launch.bin / "python"), str(_APPS / "mosec_app.py")]
    return [*program, "--address", "127.0.0.1", "--port", str(launch.port), "--log-level", "warning"]


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
    """Writes the configuration as JSON, which is valid YAML. gRPC listens beside the port, not on its own."""
    dtype = launch.setting.dtype or "auto"
    model = {"name": MODEL, "path": str(launch.model), "device": "cpu", "dtype": dtype}
    config = launch.work / "fewshard.yaml"
    config.write_text(json.dumps({"models": [model]}), encoding="utf-8")
    ports = ["--port", str(launch.port), "--grpc-port", str(launch.port + 1)]
    return [str(_FEWSHARD_BIN / "fewshard"), "serve", str(config), *ports]


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
    note="Its defaults; the dtype is the one it chooses on this machine. Other rows name their dtype.",
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
TUNED_NOTE = (
    "Tuned, it gets the Rust tokeniser itself, batches sorted by length and cut where that is faster, and "
    "threads that wait passively."
)
TORCH_PEERS = (
    Server(
        name="litserve",
        title="LitServe",
        dialect="litserve",
        ready="/health",
        command=_app("litserve_app.py"),
        shipped=Setting(SHIPPED, batch=8, wait_ms=100),
        note="A Hugging Face model, padded batches; as shipped: the batching of its API's example. "
        + TUNED_NOTE,
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
        can_cut=False,
        tuned_environment=(("RAY_SERVE_THROUGHPUT_OPTIMIZED", "1"),),
    ),
    Server(
        name="bentoml",
        title="BentoML",
        dialect="bentoml",
        ready="/readyz",
        command=_bentoml,
        shipped=Setting(SHIPPED),
        note="A batchable API round a Hugging Face model; as shipped: its adaptive batching's defaults. "
        + TUNED_NOTE,
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
        can_cut=False,
    ),
    Server(
        name="mosec",
        title="mosec",
        dialect="mosec",
        ready="/",
        command=_mosec,
        shipped=Setting(SHIPPED),
        note="A worker round a Hugging Face model, behind its server in Rust; as shipped: one text a pass. "
        + TUNED_NOTE,
        packages=("mosec", "torch", "transformers"),
    ),
)


def _over(name: str, engine: str, title: str) -> Server:
    """A torch peer with another engine."""
    (base,) = (server for server in TORCH_PEERS if server.name == name)
    return replace(
        base,
        name=f"{name}-{engine}",
        title=f"{base.title} over {title}",
        is_assembled=True,
        note=f"The same with {title} in place of torch. {TUNED_NOTE}",
        packages=(name, engine),
        engine=engine,
        pins=name,
    )


PEERS = (
    *TORCH_PEERS,
    _over("litserve", "openvino", "OpenVINO"),
    _over("litserve", "onnxruntime", "ONNX Runtime"),
    _over("bentoml", "openvino", "OpenVINO"),
    _over("bentoml", "onnxruntime", "ONNX Runtime"),
    _over("mosec", "openvino", "OpenVINO"),
)
FIRST_PEERS = ("litserve", "rayserve", "bentoml", "infinity")
"""The peers of the first results; one target is still held beside these alone."""


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
