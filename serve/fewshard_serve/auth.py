"""Bearer tokens, their holders and their scopes. `http.middleware` checks them for every request.

The tokens file only contains SHA-256 hashes. A token has 256 random bits and cannot be guessed, so one round
of a plain hash is enough (NIST SP 800-63B, 5.1.2). The file is read again when it changes.
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
"""`predict` may classify, `admin` may change the server, `priority` may be urgent. All tokens may read."""

PREFIX = "fewshard_"
"""The prefix of all tokens, so that secret scanners can recognise leaked ones."""
LOOK_AGAIN_S = 1.0
_MAX_HEADER = 1024


@dataclass(frozen=True, slots=True)
class Holder:
    """The holder of a token, and the token's scopes."""

    name: str
    scopes: frozenset[Scope]

    def check(self, scope: Scope) -> None:
        """Raise `Forbidden` if the token lacks the scope."""
        if scope not in self.scopes:
            raise Forbidden(f"the token of {self.name} lacks the scope {scope!r}; ask for one that has it")


def _digest(value: object) -> str:
    """Check a hash. The message never repeats the value, since it may be the token itself by mistake."""
    if not isinstance(value, str) or not re.fullmatch("[0-9a-fA-F]{64}", value):
        raise ValueError(
            "sha256 must be 64 hexadecimal digits; `fewshard token NAME` makes a token with its hash"
        )
    return value.lower()


LAUNCHER = Holder("fewshard", frozenset())
"""The process that started this server. It asks whether each model is ready, with a token of this run."""


class TokenEntry(Section):
    """One token in the file.

    name: the holder.
    sha256: the SHA-256 of the token's UTF-8 bytes, in hexadecimal.
    scopes: what the token permits.
    """

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
    """The tokens of one file. If a changed file is invalid, it is logged and the old tokens stay valid.

    launcher_sha256: the SHA-256 of a token that is not in the file, for `LAUNCHER`; empty if there is none.
    """

    def __init__(
        self, path: str | Path, clock: Callable[[], float] = time.monotonic, launcher_sha256: str = ""
    ) -> None:
        self._path = Path(path)
        self._clock = clock
        # Keys are blinded with a secret of this process, so that the time of a look-up reveals nothing.
        self._blinding = secrets.token_bytes(32)
        self._own = {self._blind(bytes.fromhex(launcher_sha256)): LAUNCHER} if launcher_sha256 else {}
        self._holders: Mapping[bytes, Holder] = {}
        self._stamp: object = None
        self._look_again_at = 0.0
        self.reload()

    def __len__(self) -> int:
        return len(self._holders)

    def reload(self) -> int:
        """Read the file now and return the number of tokens. On `ConfigError`, the old tokens stay."""
        self._stamp = _stamp(self._path)
        self._look_again_at = self._clock() + LOOK_AGAIN_S
        entries = read_tokens(self._path).tokens
        self._holders = {
            self._blind(bytes.fromhex(entry.sha256)): Holder(entry.name, frozenset(entry.scopes))
            for entry in entries
        }
        return len(self._holders)

    def holder_of(self, authorization: str | None) -> Holder:
        """The holder of the token in this Authorization header. Raises `Unauthorized`."""
        self._follow_the_file()
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthorized("this server asks for a token; send the header Authorization: Bearer <token>")
        key = self._blind(hash_of(token)) if len(token) <= _MAX_HEADER else b""
        holder = self._holders.get(key) or self._own.get(key)
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
    """Read a tokens file. Raises `ConfigError` with the line of a mistake, never with a hash or a token."""
    return read_yaml(path, ConfigError).parse(TokensFile)


def new_token() -> str:
    """A new token: 256 random bits, in characters that are safe in headers and shells."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_of(token: str) -> bytes:
    """The SHA-256 of a token, as bytes; the file contains it in hexadecimal."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _stamp(path: Path) -> Any:
    """A value that changes with the file, also if a symbolic link is redirected, as Kubernetes does."""
    try:
        seen = os.stat(path)
    except OSError:
        return None
    return seen.st_mtime_ns, seen.st_ino, seen.st_size
