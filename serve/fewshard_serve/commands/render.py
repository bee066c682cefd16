"""`fewshard render`: converts a `fewshard.yaml` to a Ray Serve configuration, and prints what a cluster
needs."""

import argparse
import shlex
from pathlib import Path
from typing import Any

import yaml

from fewshard_serve.commands.config_options import add_arguments, configured
from fewshard_serve.config import FewshardConfig
from fewshard_serve.errors import ConfigError, StartError


def register(subparsers: Any) -> None:
    """Add the command; `cli` calls it."""
    parser = subparsers.add_parser(
        "render",
        help="print a Ray Serve configuration",
        description="Print the configuration with which `serve deploy` serves models, the models of a file, "
        "or the bundled ones, on a Ray cluster.",
    )
    add_arguments(parser, "render")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", metavar="FILE", help="check a Ray Serve configuration strictly instead")
    what.add_argument(
        "--env", action="store_true", help="print the environment that Ray must be started with instead"
    )
    what.add_argument(
        "--haproxy", metavar="DIR", help="write the HAProxy script of a cluster's nodes there instead"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print or check; returns 0."""
    print(_output(args), end="")
    return 0


def _output(args: argparse.Namespace) -> str:
    if args.check:
        from fewshard_serve.rayserve.serve_config import check_serve_config

        return f"{args.check}: {check_serve_config(Path(args.check))} applications, no mistake\n"
    config = configured(args)
    if config.server.tls is not None:
        raise ConfigError(
            "server.tls is for `fewshard serve`; on a cluster let the ingress hold the certificate"
        )
    if args.env:
        from fewshard_serve.rayserve.deployment_plan import front_settings
        from fewshard_serve.rayserve.environment import cluster_environment

        values = cluster_environment(front_settings(config, is_on_cluster=True))
        return "".join(f"export {k}={shlex.quote(v)}\n" for k, v in values.items())
    if args.haproxy:
        return _write_haproxy(config, Path(args.haproxy))
    return _rendered(config)


def _rendered(config: FewshardConfig) -> str:
    from fewshard_serve.rayserve.serve_config import serve_config

    return yaml.safe_dump(serve_config(config), sort_keys=False, allow_unicode=True, width=110)


def _write_haproxy(config: FewshardConfig, folder: Path) -> str:
    from fewshard_serve.rayserve.deployment_plan import front_settings
    from fewshard_serve.rayserve.haproxy import BINARY, has_haproxy, write_wrapper

    folder.mkdir(parents=True, exist_ok=True)
    settings = front_settings(config, is_on_cluster=True)
    script = write_wrapper(str(folder), settings) if has_haproxy() else None
    if script is None:
        raise StartError(f"HAProxy cannot run from {folder}; Ray Serve would use its own proxy")
    return f"export {BINARY}={shlex.quote(script)}\n"
