"""`fewshard serve`: starts Ray Serve here or joins a cluster, serves models, drains on Ctrl-C or SIGTERM."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewshard_models import hub
from fewshard_serve.commands.config_options import add_arguments, configured
from fewshard_serve.commands.inspect import checkpoint_dir
from fewshard_serve.config import FewshardConfig, ModelConfig
from fewshard_serve.config_file import pinned
from fewshard_serve.errors import ConfigError
from fewshard_serve.http.callers import is_loopback
from fewshard_serve.logs import write_line

if TYPE_CHECKING:
    from fewshard_serve.protocol.tasks import Task

OPEN_TO_ALL = (
    "fewshard: warning: the server listens on {host} and asks for no token, so whoever reaches it may use "
    "it; set auth.tokens_file (docs/security.md)"
)


def register(subparsers: Any) -> None:
    """Add the command; `cli` calls it."""
    parser = subparsers.add_parser(
        "serve",
        help="serve models over HTTP",
        description="Serve models, the models of a file, or the bundled ones. Ctrl-C or SIGTERM drains and "
        "stops; SIGHUP reads the file again and replaces the models that have changed.",
    )
    add_arguments(parser, "serve")
    parser.add_argument(
        "--address", help="join the Ray cluster there (`auto`, host:port) instead of starting one"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal. Returns 0 after a clean stop, 130 if a second signal ended it."""
    config = _with_commits(args)
    from fewshard_serve.rayserve.launch import serve_until_signalled

    if config.auth is None and not is_loopback(config.server.host):
        write_line(OPEN_TO_ALL.format(host=config.server.host), sys.stderr)
    write_line(f"fewshard: loading {', '.join(model.name for model in config.models)}")
    return serve_until_signalled(
        config,
        address=args.address,
        on_ready=lambda: write_line(greeting(config)),
        read_again=lambda: _with_commits(args),
    )


def _with_commits(args: argparse.Namespace) -> FewshardConfig:
    """The configuration, in which each model of the Hugging Face Hub has its commit; prints these."""
    config = pinned(configured(args))
    for model in config.models:
        if model.path.startswith(hub.SCHEME):
            write_line(f"fewshard: {model.name} is {model.path}")
    return config


def greeting(config: FewshardConfig) -> str:
    """Return the URLs of the models, and a sample request."""
    base, count = base_url(config), len(config.models)
    lines = [f"\nFewshard serves {count} model{'' if count == 1 else 's'} at {base}", ""]
    names = [*(model.name for model in config.models), *(cascade.name for cascade in config.cascades)]
    lines += [f"  {base}/v2/models/{name}" for name in names]
    if config.server.grpc_port:
        lines += ["", f"  gRPC: {base.partition('//')[2].rpartition(':')[0]}:{config.server.grpc_port}"]
    lines += ["", f"Every endpoint is described at {base}/docs", ""]
    return "\n".join([*lines, "Try it:", f"  {sample_curl(base, config.models)}", ""])


def base_url(config: FewshardConfig) -> str:
    """Return a URL for this machine, also if the server listens on every address."""
    host = "127.0.0.1" if config.server.host in ("0.0.0.0", "::") else config.server.host
    scheme = "http" if config.server.tls is None else "https"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{config.server.port}"


def sample_curl(base: str, models: tuple[ModelConfig, ...]) -> str:
    """Return a request for the first text model, or for the first model if there is none."""
    from fewshard_serve.protocol.tasks import TASKS

    places = {task.name: place for place, task in enumerate(TASKS)}
    model, task = min(((model, _task(model)) for model in models), key=lambda pair: places[pair[1].name])
    return task.sample_call(f"{base}/v2/models/{model.name}/classify")


def _task(model: ModelConfig) -> "Task":
    """Return the task from the checkpoint's card, else from its architecture, else the first task."""
    from fewshard_serve.protocol.tasks import TASKS

    first = next(iter(TASKS))
    try:
        directory = checkpoint_dir(model.path)
    except ConfigError:
        return first
    stated = _json_file(directory / "card.json").get("task")
    architectures = " ".join(map(str, _json_file(directory / "config.json").get("architectures") or []))
    by_card = [task for task in TASKS if task.name == stated]
    by_architecture = [task for task in TASKS if task.architecture in architectures]
    return [*by_card, *by_architecture, first][0]


def _json_file(path: Path) -> dict[str, Any]:
    """Return the JSON object, or {} on failure: the server reports damaged checkpoints."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
