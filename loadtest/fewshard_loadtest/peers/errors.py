"""What can keep a server from being measured; `__main__` and `session` catch it."""


class BenchmarkError(RuntimeError):
    """A server did not come up, left, answered wrongly or cannot be installed. The message says which."""
