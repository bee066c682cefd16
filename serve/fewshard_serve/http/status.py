"""Which HTTP status each error has: the only place that knows it. Called by `responses`."""

from fewshard_serve import errors
from fewshard_serve.errors import FewshardError

HTTP_STATUS: dict[type[FewshardError], int] = {
    errors.MalformedRequest: 400,
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.UnknownModel: 404,
    errors.NotFound: 404,
    errors.MethodNotAllowed: 405,
    errors.DeadlineExceeded: 408,
    errors.TooLarge: 413,
    errors.UnsupportedMedia: 415,
    errors.UnusableItem: 422,
    errors.Overloaded: 429,
    errors.CallerGone: 499,
    errors.InternalError: 500,
    errors.NotReady: 503,
}
"""Errors of the command line have no status: meeting one in a request is a bug, so 500."""


def status_of(error: FewshardError) -> int:
    """The status of the nearest class that has one."""
    return next((HTTP_STATUS[kind] for kind in type(error).__mro__ if kind in HTTP_STATUS), 500)
