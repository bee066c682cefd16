"""Keeps measurements in a JSON file for each machine, so that two loads of a model choose alike.

Processes that start at once measure one after the other; each but the first finds what it needs.
"""

import functools
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from fewshard_models.tuning.machine import Machine, cache_folder, this_machine

logger = logging.getLogger(__name__)

MAX_WAIT_S = 30.0
"""How long to wait for another process that measures, before measuring beside it."""
_POLL_S = 0.05


class TuningCache:
    """Values by key, in `folder` and in this process. Several processes may use a folder; no method raises.

    folder: None keeps values in the process alone.
    """

    def __init__(self, folder: Path | None, machine: Machine) -> None:
        self.file = None if folder is None else folder / machine.file_name
        self._machine = machine.as_json()
        self._own: dict[str, Any] = {}
        self._told: set[str] = set()
        self._lock = threading.RLock()
        self._depth = 0

    def recall(self, key: str) -> Any:
        """Return the value of a key; None if there is none."""
        return self._read().get(key, self._own.get(key))

    def keep(self, key: str, value: Any) -> None:
        """Store a value, or say that it cannot be stored."""
        self._own[key] = value
        self._change(lambda entries: {**entries, key: value})

    def forget(self, beginning: str) -> None:
        """Forget every value whose key begins so."""
        self._own = _without(self._own, beginning)
        self._change(lambda entries: _without(entries, beginning))

    def _change(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        if self.file is None:
            return
        with self.alone():
            try:
                self._write(change(self._read()))
            except OSError as error:
                self._say(
                    f"measurements cannot be kept in {self.file.parent} ({error}); the next start measures "
                    "again: let FEWSHARD_CACHE name a folder that can be written"
                )

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes and threads from measuring; may be nested."""
        with self._lock, ExitStack() as stack:
            if not self._depth and self.file is not None:
                stack.enter_context(_locked(self.file.with_suffix(".lock")))
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1

    def _read(self) -> dict[str, Any]:
        if self.file is None:
            return {}
        try:
            content = json.loads(self.file.read_text(encoding="utf-8"))
            machine, entries = content["machine"], content["entries"]
        except (FileNotFoundError, NotADirectoryError):
            return {}  # if it cannot be made either, `keep` says so
        except OSError as error:
            self._say(f"{self.file} cannot be read ({error.strerror}); measuring anew")
            return {}
        except (ValueError, KeyError, TypeError) as error:
            self._say(f"{self.file} is damaged and ignored; measuring anew ({type(error).__name__}: {error})")
            return {}
        if machine != self._machine or not isinstance(entries, dict):
            self._say(f"{self.file} is of another machine or version and ignored; measuring anew")
            return {}
        return entries

    def _write(self, entries: dict[str, Any]) -> None:
        assert self.file is not None
        self.file.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=self.file.parent, prefix=self.file.name, suffix=".partial")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump({"machine": self._machine, "entries": entries}, file, indent=1)
            os.replace(partial, self.file)
        except OSError:
            with suppress(OSError):
                os.unlink(partial)
            raise

    def _say(self, message: str) -> None:
        """Log a message once."""
        if message not in self._told:
            self._told.add(message)
            logger.warning("%s", message)


def _without(entries: dict[str, Any], beginning: str) -> dict[str, Any]:
    return {key: value for key, value in entries.items() if not key.startswith(beginning)}


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold an advisory lock; without one where the folder or the system has none, or after `MAX_WAIT_S`."""
    with ExitStack() as stack:
        try:
            import fcntl

            file.parent.mkdir(parents=True, exist_ok=True)
            handle = stack.enter_context(file.open("w"))
            end = time.monotonic() + MAX_WAIT_S
            while not _try_lock(fcntl, handle.fileno()) and time.monotonic() < end:
                time.sleep(_POLL_S)
        except (ImportError, OSError):
            pass
        yield


def _try_lock(fcntl: Any, descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def tuning_cache() -> TuningCache:
    """Return this process's cache, by its environment."""
    return _cache(cache_folder())


@functools.lru_cache(maxsize=4)
def _cache(folder: Path | None) -> TuningCache:
    return TuningCache(folder, this_machine())
