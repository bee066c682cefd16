"""The errors that the server reports to users; `fewshard_core.errors` shows the whole tree.

`http.responses` has the HTTP status of each error, `rpc.inference` its gRPC status.
"""

from typing import ClassVar

# Also exported from here, because callers of the Python client import it from this module.
from fewshard_core.errors import FewshardError


class ServeError(FewshardError):
    """The base of the server's errors. `code` is a stable word that clients may compare."""

    code: ClassVar[str] = "error"


class MalformedRequest(ServeError):
    code = "malformed"


class Unauthorized(ServeError):
    code = "unauthorized"


class Forbidden(ServeError):
    code = "forbidden"


class UnknownModel(ServeError):
    """The message lists the models that are served."""

    code = "unknown_model"

    def __init__(self, name: str, served: list[str]) -> None:
        super().__init__(f"no model named {name!r} is served here; there are: {', '.join(served) or 'none'}")
        self.name = name


class NotFound(ServeError):
    code = "not_found"


class ModelUnloaded(NotFound):
    """A request has unloaded the model; another can load it again."""

    code = "unloaded"

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} is unloaded; POST /v2/repository/models/{name}/load loads it again")
        self.name = name


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
    """`index` is the item's position in the request, from 0."""

    code = "unusable_item"

    def __init__(self, index: int, message: str) -> None:
        super().__init__(f"item {index}: {message}")
        self.index = index
        self.reason = message


class Overloaded(ServeError):
    """`retry_after_s`: seconds after which to retry, estimated from the work in flight."""

    code = "overloaded"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class CallerGone(ServeError):
    code = "caller_gone"


class InternalError(ServeError):
    code = "internal"


class ModelRestarted(InternalError):
    """The process of the models ended during a forward pass, and a new one has loaded them."""


class NotReady(ServeError):
    code = "not_ready"


class ChangeRefused(ServeError):
    """A model that a request wants loaded or unloaded is not; what runs goes on."""

    code = "change_refused"


class ConfigError(ServeError):
    code = "bad_config"


class StartError(ServeError):
    code = "cannot_start"
