"""Errors of load tests, benchmarks and reports. Only commands turn them into exit codes.

`fewshard_core.errors` draws the tree.
"""

from fewshard_core.errors import FewshardError


class LoadTestError(FewshardError):
    """The load generator itself failed. Error responses of a server are results, not errors."""


class ScenarioError(LoadTestError):
    """A usage error; the message says where it is and how to fix it."""


class ServerGone(LoadTestError):
    """The server died or stopped responding. Earlier results are kept and reported as partial."""


class BenchmarkError(LoadTestError):
    """A server did not start, exited, gave wrong answers or cannot be installed. The message says which."""
