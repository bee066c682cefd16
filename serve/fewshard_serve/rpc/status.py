"""Which gRPC status each error has: the only place that knows it. Called by `server`."""

from grpc import StatusCode

from fewshard_serve import errors
from fewshard_serve.errors import FewshardError

GRPC_STATUS: dict[type[FewshardError], StatusCode] = {
    errors.MalformedRequest: StatusCode.INVALID_ARGUMENT,
    errors.Unauthorized: StatusCode.UNAUTHENTICATED,
    errors.Forbidden: StatusCode.PERMISSION_DENIED,
    errors.UnknownModel: StatusCode.NOT_FOUND,
    errors.NotFound: StatusCode.NOT_FOUND,
    errors.MethodNotAllowed: StatusCode.UNIMPLEMENTED,
    errors.DeadlineExceeded: StatusCode.DEADLINE_EXCEEDED,
    # Not RESOURCE_EXHAUSTED, which clients take for a reason to try again.
    errors.TooLarge: StatusCode.INVALID_ARGUMENT,
    errors.UnsupportedMedia: StatusCode.INVALID_ARGUMENT,
    errors.UnusableItem: StatusCode.INVALID_ARGUMENT,
    errors.Overloaded: StatusCode.RESOURCE_EXHAUSTED,
    errors.CallerGone: StatusCode.CANCELLED,
    errors.InternalError: StatusCode.INTERNAL,
    errors.NotReady: StatusCode.UNAVAILABLE,
}


def status_of(error: FewshardError) -> StatusCode:
    """The status of the nearest class that has one."""
    kinds = (GRPC_STATUS[kind] for kind in type(error).__mro__ if kind in GRPC_STATUS)
    return next(kinds, StatusCode.INTERNAL)
