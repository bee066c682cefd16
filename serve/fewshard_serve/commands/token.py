"""`fewshard token`: creates a bearer token, and the entry for the tokens file."""

import argparse
import re
import sys
from typing import Any, get_args

from fewshard_serve.auth import Scope, hash_of, new_token
from fewshard_serve.errors import ConfigError


def register(subparsers: Any) -> None:
    """Add the command; `cli` calls it."""
    parser = subparsers.add_parser(
        "token",
        help="make a bearer token",
        description="Print a new token, once, and the entry for the file that auth.tokens_file names.",
    )
    parser.add_argument("name", metavar="NAME", help="whose it is; appears in logs")
    parser.add_argument(
        "--scopes",
        default="predict",
        help=f"some of {','.join(get_args(Scope))}; none for reading alone (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the entry to stdout, to be appended to the file, and the token to stderr. Returns 0."""
    scopes = [scope.strip() for scope in args.scopes.split(",") if scope.strip()]
    unknown = [scope for scope in scopes if scope not in get_args(Scope)]
    if unknown:
        raise ConfigError(f"no scope {unknown[0]!r}; there are: {', '.join(get_args(Scope))}")
    if not re.fullmatch("[A-Za-z0-9._@-]{1,64}", args.name):
        raise ConfigError(f"{args.name!r} must be up to 64 letters, digits, '.', '_', '@' and '-'")
    token = new_token()
    print(f"token, shown this once: {token}", file=sys.stderr)
    print(f"  - {{name: {args.name}, sha256: {hash_of(token).hex()}, scopes: [{', '.join(scopes)}]}}")
    return 0
