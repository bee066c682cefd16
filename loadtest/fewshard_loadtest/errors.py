"""What stops a load test or a report. Only the command turns these into exit codes.

LoadTestError
├── ScenarioError    the scenario, a price list, a budget or a payload cannot be used (exit code 2)
└── ServerGone       the server died or stopped answering while it was measured (exit code 4)

What can keep a server from being measured; `__main__` and `session` catch it.
"""


class LoadTestError(RuntimeError):
    """The generator itself failed; a server that answers errors is a result, not an error."""


class ScenarioError(LoadTestError):
    """A mistake of the caller's; the message says where it is and what to do."""


class ServerGone(LoadTestError):
    """What had been measured by then is kept, and reported as partial."""


class BenchmarkError(RuntimeError):
    """A server did not come up, left, answered wrongly or cannot be installed. The message says which."""
