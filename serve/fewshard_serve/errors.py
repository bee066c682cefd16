"""Every error a user of the server can meet.

    FewshardError
    ├── MalformedRequest      the request cannot be understood: not JSON, a wrong field, dtype or shape
    ├── Unauthorized          no valid bearer token
    ├── Forbidden             the token lacks the scope
    ├── UnknownModel          no model of that name is served here
    ├── NotFound              no such path
    ├── MethodNotAllowed      the path exists, the verb does not
    ├── DeadlineExceeded      the request's time was up before the model answered
    ├── TooLarge              the body, a text, the number of items or the JSON's depth passes a limit
    ├── UnsupportedMedia      a content type or encoding that is not spoken here
    ├── UnusableItem          one item of the request cannot be used; says which
    ├── Overloaded            admission refused; says when to come back
    ├── CallerGone            the client hung up
    ├── InternalError         ours: a bug or a failing device
    │   └── ModelRestarted    a forward pass that the models' process did not survive; it may be asked again
    ├── NotReady              starting, draining, or a model that failed to load
    ├── ConfigError           the configuration cannot be used (command line: exit code 2)
    └── StartError            the server cannot start here: port in use, no Ray (command line: exit code 1)

The HTTP status of each lives in `http.status`, the only place that knows it.
`code` is the stable word clients may test for; the message says what is wrong and what to do.
"""

from typing import Any, ClassVar


class FewshardError(Exception):
    """The base of every error this server raises on purpose; may be pickled, to cross processes."""

    code: ClassVar[str] = "error"

    def __reduce__(self) -> tuple[Any, ...]:
        # Without this an error is rebuilt from its message alone, which is not what every class takes.
        return _restore, (type(self), self.args, self.__dict__)


def _restore(kind: type[FewshardError], args: tuple[Any, ...], state: dict[str, Any]) -> FewshardError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class MalformedRequest(FewshardError):
    code = "malformed"


class Unauthorized(FewshardError):
    code = "unauthorized"


class Forbidden(FewshardError):
    code = "forbidden"


class UnknownModel(FewshardError):
    """Names the models there are."""

    code = "unknown_model"

    def __init__(self, name: str, served: list[str]) -> None:
        super().__init__(f"no model named {name!r} is served here; there are: {', '.join(served) or 'none'}")
        self.name = name


class NotFound(FewshardError):
    code = "not_found"


class MethodNotAllowed(FewshardError):
    """`allowed` is the value of the `Allow` header."""

    code = "method_not_allowed"

    def __init__(self, message: str, allowed: str) -> None:
        super().__init__(message)
        self.allowed = allowed


class DeadlineExceeded(FewshardError):
    code = "deadline_exceeded"


class TooLarge(FewshardError):
    code = "too_large"


class UnsupportedMedia(FewshardError):
    code = "unsupported_media"


class UnusableItem(FewshardError):
    """`index` is the item's place in the request, from 0."""

    code = "unusable_item"

    def __init__(self, index: int, message: str) -> None:
        super().__init__(f"item {index}: {message}")
        self.index = index
        self.reason = message


class Overloaded(FewshardError):
    """`retry_after_s` is computed from the work in flight."""

    code = "overloaded"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class CallerGone(FewshardError):
    code = "caller_gone"


class InternalError(FewshardError):
    code = "internal"


class ModelRestarted(InternalError):
    """The process of the models ended in a forward pass; another one has loaded them."""


class NotReady(FewshardError):
    code = "not_ready"


class ConfigError(FewshardError):
    code = "bad_config"


class StartError(FewshardError):
    code = "cannot_start"
