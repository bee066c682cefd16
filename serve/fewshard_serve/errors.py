"""Every error that the server tells a user; `fewshard_core.errors` draws the whole tree.

The HTTP status of each is in `http.status`, the only place that knows it.
"""

from typing import ClassVar

# Kept under this name too: callers of the Python client catch it from here.
from fewshard_core.errors import FewshardError


class ServeError(FewshardError):
    """The base of the server's errors. `code` is the stable word that clients may test for."""

    code: ClassVar[str] = "error"


class MalformedRequest(ServeError):
    code = "malformed"


class Unauthorized(ServeError):
    code = "unauthorized"


class Forbidden(ServeError):
    code = "forbidden"


class UnknownModel(ServeError):
    """Names the models there are."""

    code = "unknown_model"

    def __init__(self, name: str, served: list[str]) -> None:
        super().__init__(f"no model named {name!r} is served here; there are: {', '.join(served) or 'none'}")
        self.name = name


class NotFound(ServeError):
    code = "not_found"


class MethodNotAllowed(ServeError):
    """`allowed` is the value of the `Allow` header."""

    code = "method_not_allowed"

    def __init__(self, message: str, allowed: str) -> None:
        super().__init__(message)
        self.allowed = allowed


class DeadlineExceeded(ServeError):
    code = "deadline_exceeded"


class TooLarge(ServeError):
    code = "too_large"


class UnsupportedMedia(ServeError):
    code = "unsupported_media"


class UnusableItem(ServeError):
    """`index` is the item's place in the request, from 0."""

    code = "unusable_item"

    def __init__(self, index: int, message: str) -> None:
        super().__init__(f"item {index}: {message}")
        self.index = index
        self.reason = message


class Overloaded(ServeError):
    """`retry_after_s` is computed from the work in flight."""

    code = "overloaded"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class CallerGone(ServeError):
    code = "caller_gone"


class InternalError(ServeError):
    code = "internal"


class ModelRestarted(InternalError):
    """The process of the models ended in a forward pass; another one has loaded them."""


class NotReady(ServeError):
    code = "not_ready"


class ConfigError(ServeError):
    code = "bad_config"


class StartError(ServeError):
    code = "cannot_start"
