"""A lock for passes that may overlap and others that must be alone. `packed_text` and the server use it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class SharedLock:
    """Any number of threads may hold it as `shared`, or one alone as `exclusive`.

    Who wants it alone waits for those that hold it; nobody enters before.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._door = threading.Lock()
        self._num_inside = 0

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold it beside others."""
        with self._door, self._changed:
            self._num_inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_inside -= 1
                self._changed.notify()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold it alone."""
        with self._door:
            with self._changed:
                self._changed.wait_for(lambda: not self._num_inside)
            yield
