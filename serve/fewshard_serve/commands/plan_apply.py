"""`fewshard plan --apply`: a running server takes the placement over, after it has said what that costs."""

import argparse
import sys
from typing import TYPE_CHECKING

from fewshard_serve.client import Client, ClientError

if TYPE_CHECKING:
    from fewshard_models.sharding import Placement

TIMEOUT_S = 120.0


def apply(args: argparse.Namespace, placement: "Placement") -> None:
    """Ask first, print what it costs, then have it done. Raises ClientError where the server refuses."""
    client = Client(args.url, TIMEOUT_S)
    body = {"model": args.model, **placement.to_json()}
    planned = client.place(args.model, body)
    out = sys.stderr if args.json else sys.stdout
    cost = f"{planned['moves']} experts to load ({planned['bytes'] / 1e6:.1f} MB)"
    print(f"{args.url} has {cost} on {planned['replicas']} replicas", file=out)
    if planned["moves"] and not client.place(args.model, {**body, "apply": True})["applied"]:
        raise ClientError(
            f"{args.url} has not put the placement in force within a minute; are all shards there? "
            f"See {args.url}/v2/models/{args.model}/experts"
        )
    print("in force" if planned["moves"] else "nothing to do", file=out)
