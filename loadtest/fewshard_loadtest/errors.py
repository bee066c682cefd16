"""What stops a load test, a benchmark or a report. Only commands turn these into exit codes.

`fewshard_core.errors` draws the tree.
"""

from fewshard_core.errors import FewshardError


class LoadTestError(FewshardError):
    """The generator itself failed; a server that answers errors is a result, not an error."""


class ScenarioError(LoadTestError):
    """A mistake of the caller's; the message says where it is and what to do."""


class ServerGone(LoadTestError):
    """What had been measured by then is kept, and reported as partial."""


class BenchmarkError(LoadTestError):
    """A server did not come up, left, answered wrongly or cannot be installed. The message says which."""
