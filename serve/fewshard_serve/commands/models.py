"""`fewshard models`: lists the models of a running server."""

import argparse
import json
from typing import Any

from fewshard_serve.client import DEFAULT_URL, Client, Retry
from fewshard_serve.commands import formatting

HEADER = ("model", "state", "task", "kind", "parameters", "active", "MACs", "accuracy", "dtype", "device")


def register(subparsers: Any) -> None:
    """Add the command; `cli` calls it."""
    parser = subparsers.add_parser(
        "models",
        help="list what a running server serves",
        description="List the models of a running server: state, kind, size and cost of one item.",
    )
    parser.add_argument("--url", default=DEFAULT_URL, help="the server (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the server's answers as they are")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Get the index, then each ready model's configuration; returns 0."""
    with Client(args.url, retry=Retry(on_connect=False)) as client:
        entries = [_with_config(client, entry) for entry in client.index()]
    if args.json:
        print(json.dumps(entries, indent=2, ensure_ascii=False))
    else:
        print(formatting.table(HEADER, [_row(entry) for entry in entries]))
    return 0


def _with_config(client: Client, entry: dict[str, Any]) -> dict[str, Any]:
    if entry.get("state") != "READY":
        return entry
    return {**entry, "config": client.config(entry["name"])}


def _dtype(config: dict[str, Any]) -> str | None:
    """Return the number format, and the engine where it is another than torch."""
    engine = config.get("execution", {}).get("engine", "torch")
    return config.get("dtype") if engine == "torch" else f"{config.get('dtype')} in {engine}"


def _row(entry: dict[str, Any]) -> tuple[str, ...]:
    config = entry.get("config", {})
    card = config.get("card", {})
    state = " ".join(filter(None, (entry.get("state"), entry.get("reason"))))
    return (
        entry["name"],
        formatting.shortened(state, 60),
        formatting.text(config.get("task")),
        formatting.text(config.get("kind")),
        formatting.count(card.get("parameters_total")),
        formatting.count(card.get("parameters_active")),
        formatting.count(card.get("macs")),
        formatting.fraction(card.get("accuracy")),
        formatting.text(_dtype(config)),
        formatting.text(config.get("device")),
    )
