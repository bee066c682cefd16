"""Bearer tokens: who holds them and what they may do. The doors of HTTP and gRPC ask it on every request.

The file holds SHA-256 hashes alone. A token is 256 random bits, so that one round of a plain hash is enough:
there is nothing to guess (NIST SP 800-63B, 5.1.2). The file is read again when it changes.
"""

import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from fewshard_core.yaml_reader import Section, read_yaml
from fewshard_serve.errors import ConfigError, Forbidden, Unauthorized

logger = logging.getLogger(__name__)

Scope = Literal["predict", "admin", "priority"]
"""`predict` may classify, `admin` may change the server, `priority` may go first; every token may read."""

PREFIX = "fewshard_"
"""So that scanners for leaked secrets recognise a token."""
LOOK_AGAIN_S = 1.0
_MAX_HEADER = 1024


@dataclass(frozen=True, slots=True)
class Holder:
    """Whom a token belongs to."""

    name: str
    scopes: frozenset[Scope]

    def check(self, scope: Scope) -> None:
        """Raise `Forbidden` where the scope is not theirs."""
        if scope not in self.scopes:
            raise Forbidden(f"the token of {self.name} lacks the scope {scope!r}; ask for one that has it")


def _digest(value: object) -> str:
    """The message never repeats the value: somebody may have put the token itself there."""
    if not isinstance(value, str) or not re.fullmatch("[0-9a-fA-F]{64}", value):
        raise ValueError(
            "sha256 must be 64 hexadecimal digits; `fewshard token NAME` makes a token with its hash"
        )
    return value.lower()


class TokenEntry(Section):
    """One token: whose it is, the SHA-256 of its UTF-8 bytes in hexadecimal, and what it is for."""

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._@-]+$")]
    sha256: Annotated[str, BeforeValidator(_digest)]
    scopes: tuple[Scope, ...] = ()


class TokensFile(Section):
    """The whole file."""

    tokens: tuple[TokenEntry, ...]

    @model_validator(mode="after")
    def _differ(self) -> "TokensFile":
        for field in ("name", "sha256"):
            values = [getattr(entry, field) for entry in self.tokens]
            if len(set(values)) < len(values):
                raise ValueError(f"two tokens have the same {field}; each must have its own")
        return self


class Tokens:
    """The tokens of one file. A change that cannot be read is logged, and the tokens before it stay valid."""

    def __init__(self, path: str | Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = Path(path)
        self._clock = clock
        # Keyed by what nobody outside this process can compute: how long a look-up takes tells nothing.
        self._blinding = secrets.token_bytes(32)
        self._holders: Mapping[bytes, Holder] = {}
        self._stamp: object = None
        self._look_again_at = 0.0
        self.reload()

    def __len__(self) -> int:
        return len(self._holders)

    def reload(self) -> int:
        """Read the file now; the number of tokens. Raises `ConfigError` and keeps those it had."""
        self._stamp = _stamp(self._path)
        self._look_again_at = self._clock() + LOOK_AGAIN_S
        entries = read_tokens(self._path).tokens
        self._holders = {
            self._blind(bytes.fromhex(entry.sha256)): Holder(entry.name, frozenset(entry.scopes))
            for entry in entries
        }
        return len(self._holders)

    def holder_of(self, authorization: str | None) -> Holder:
        """Who sent this value of the Authorization header. Raises `Unauthorized`."""
        self._follow_the_file()
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthorized("this server asks for a token; send the header Authorization: Bearer <token>")
        holder = self._holders.get(self._blind(hash_of(token))) if len(token) <= _MAX_HEADER else None
        if holder is None:
            raise Unauthorized("the token is not one of this server's; it may have been withdrawn")
        return holder

    def _follow_the_file(self) -> None:
        if self._clock() < self._look_again_at:
            return
        self._look_again_at = self._clock() + LOOK_AGAIN_S
        if _stamp(self._path) == self._stamp:
            return
        try:
            logger.warning("the tokens file has changed: %d tokens", self.reload())
        except ConfigError as error:
            logger.error("the tokens file has changed and cannot be read, the old tokens stay: %s", error)

    def _blind(self, digest: bytes) -> bytes:
        return hmac.digest(self._blinding, digest, "sha256")


def read_tokens(path: Path) -> TokensFile:
    """Raises `ConfigError` with the line of a mistake, and never with a hash or a token."""
    return read_yaml(path, ConfigError).parse(TokensFile)


def new_token() -> str:
    """256 random bits in a form that fits headers and shells."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_of(token: str) -> bytes:
    """What the file holds of a token, as bytes."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _stamp(path: Path) -> Any:
    """Changes with the file, also where a link is turned to another one, as Kubernetes does."""
    try:
        seen = os.stat(path)
    except OSError:
        return None
    return seen.st_mtime_ns, seen.st_ino, seen.st_size
