"""The replica's side of the model process.

A forward pass consists of a thousand short calls, between which Python releases the interpreter lock. A busy
event loop takes the lock each time: in one process, a batch of 32 texts took twice as long under load as
alone (docs/log.md).
"""

import itertools
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from fewshard_core.values import Diagnosis, ExpertCounts, Item, ModelOutput
from fewshard_models.classifier.base import Classifier
from fewshard_serve.backends import child_process
from fewshard_serve.backends.child_process import Failed, Loaded, Loading, Passed, Seen
from fewshard_serve.backends.early_process import TakenOver, take_over
from fewshard_serve.backends.packing import pack_items, unpack_counts, unpack_output
from fewshard_serve.core import GroupState
from fewshard_serve.errors import InternalError, ModelRestarted

logger = logging.getLogger(__name__)


STOP_TIMEOUT_S = 5.0
START_TIMEOUT_S = 120.0
"""A process that has not reloaded its models after this time is treated as hung."""


class ProcessEnded(InternalError):
    """The process ended during a call."""


class ModelProcess:
    """A process that holds models. It starts at once, or has waited at `early`, the path of a socket, and may
    be called from any thread.

    Calls made during a pass are sent at once and run right after it, or beside it where the model has several
    streams, so the process does not wait for the replica between two passes. If the process ends
    unexpectedly, for example when a kernel crashes or memory runs out, a new one is started and loads the
    same models.
    """

    def __init__(self, num_threads: int, early: str = "") -> None:
        self._num_threads = num_threads
        self._loaded: list[Loading] = []
        self._lock = threading.Lock()
        self._is_closed = False
        self._restart_began_at: float | None = None
        self.problem = ""
        """Why no call can succeed any more; "" otherwise."""
        self._line = _Line(num_threads, early)

    @property
    def pid(self) -> int:
        return self._line.process.pid

    @property
    def is_restarting(self) -> bool:
        """Whether a pass takes long because a new process is loading the models."""
        began_at = self._restart_began_at
        return began_at is not None and time.monotonic() - began_at < START_TIMEOUT_S

    def load(self, loading: Loading) -> "RemoteModel":
        """Load a model. Raises as the loader does, and if the golden inputs are answered wrongly.

        A checkpoint that ends the process leaves a new process with the models loaded before.
        """
        with self._lock:
            try:
                loaded = self._line.ask("load", loading)
            except ProcessEnded as error:
                self._restart(error)
                raise
            self._loaded.append(loading)
        return RemoteModel(self, loaded)

    def ask(self, method: str, *arguments: Any, in_turn: Callable[[Any], None] | None = None) -> Any:
        """Call a method of `Child`. Raises its errors; `ModelRestarted` if the process ended and was
        replaced.

        `in_turn` is called with the answers in the order in which the process gave them.
        """
        line = self._line
        try:
            return line.ask(method, *arguments, in_turn=in_turn)
        except ProcessEnded as error:
            with self._lock:
                if self._is_closed:
                    raise
                if line is self._line:
                    logger.error("%s; starting another", error)
                    self._restart(error)
            raise ModelRestarted(str(error)) from error

    def close(self) -> None:
        self._is_closed = True
        self._line.end()

    def _restart(self, reason: ProcessEnded) -> None:
        self._restart_began_at = time.monotonic()
        try:
            self._line.end()
            self._line = _Line(self._num_threads)
            for loading in self._loaded:
                self._line.ask("load", loading)
        except Exception as error:
            self.problem = f"{reason}, and another one cannot load the models: {error}"
            raise
        finally:
            self._restart_began_at = None


class _Line:
    """One process and the connection to it, with the calls in flight."""

    def __init__(self, num_threads: int, early: str = "") -> None:
        self.process: subprocess.Popen[bytes] | TakenOver
        self.process, self._connection = take_over(early) or _start(num_threads)
        self._sending = threading.Lock()
        self._numbers = itertools.count()
        self._in_turn: dict[int, Callable[[Any], None] | None] = {}
        self._received = threading.Condition()
        self._answers: dict[int, Any] = {}
        """Received by another thread than the one that waits for it."""
        self._is_receiving = False
        self._is_ended = False
        """Then the connection must not be used: its file descriptor may belong to the next one."""

    def ask(self, method: str, *arguments: Any, in_turn: Callable[[Any], None] | None = None) -> Any:
        try:
            with self._sending:
                self._check()
                number = next(self._numbers)
                self._in_turn[number] = in_turn
                child_process.send(self._connection, (number, (method, arguments)))
            answer = self._answer_to(number)
        except (EOFError, OSError) as error:
            raise ProcessEnded(f"the process of the models has ended ({self._last_words()})") from error
        if isinstance(answer, Failed):
            raise answer.error
        return answer

    def _answer_to(self, number: int) -> Any:
        """Wait for an answer. One of the waiting threads receives, for the others too."""
        while True:
            with self._received:
                self._received.wait_for(lambda: number in self._answers or not self._is_receiving)
                if number in self._answers:
                    return self._answers.pop(number)
                self._is_receiving = True
            try:
                self._receive()
            finally:
                with self._received:
                    self._is_receiving = False
                    self._received.notify_all()

    def _receive(self) -> None:
        try:
            self._check()
            number, answer = child_process.receive(self._connection)
        except (EOFError, OSError):
            self._is_ended = True
            raise
        in_turn = self._in_turn.pop(number)
        if in_turn is not None and not isinstance(answer, Failed):
            in_turn(answer)
        self._answers[number] = answer

    def _check(self) -> None:
        if self._is_ended:
            raise EOFError

    def end(self) -> None:
        self.process.kill()  # first, so that no thread is left sending to it
        with self._sending:
            self._is_ended = True
            self._connection.close()
        self.process.communicate()

    def _last_words(self) -> str:
        try:
            code = self.process.wait(STOP_TIMEOUT_S)
            return "its exit code is not known" if code is None else f"exit code {code}"
        except subprocess.TimeoutExpired:
            return "it does not answer"


class RemoteModel(Classifier):
    """A model of a `ModelProcess`. Its items are prepared in this process."""

    def __init__(self, process: ModelProcess, loaded: Loaded) -> None:
        self.info, self.preprocessor = loaded.info, loaded.preprocessor
        self._process, self._pid = process, process.pid
        self._seen, self.gpu_uuid = loaded.seen, loaded.gpu_uuid
        self._counts_of_the_dead: ExpertCounts | None = None

    def run(self, items: Sequence[Item]) -> ModelOutput:
        return self.run_by(float("inf"), items)

    def run_by(self, give_up_at: float, items: Sequence[Item]) -> ModelOutput:
        """See `Classifier.run_by`. The clock is the machine's, and so the same in both processes."""
        asked = (self.info.name, pack_items(items), give_up_at)
        passed: Passed = self._process.ask("run", *asked, in_turn=self._see)
        for item, experts in zip(items, passed.experts or (), strict=passed.experts is not None):
            if item.routing is not None:
                item.routing.experts = experts
        return unpack_output(passed.output)

    def _see(self, passed: Passed) -> None:
        if self._process.pid != self._pid:
            self._pid, self._counts_of_the_dead = self._process.pid, self.expert_counts()
        seen = self._seen
        self._seen = Seen(
            unpack_counts(passed.counts), passed.diagnosis or seen.diagnosis, passed.group or seen.group
        )

    def expert_counts(self) -> ExpertCounts | None:
        """Return the counts after the last pass. A call would wait for the running pass."""
        dead, alive = self._counts_of_the_dead, self._seen.expert_counts
        return dead + alive if dead and alive else dead or alive

    def diagnosis(self) -> Diagnosis | None:
        return self._seen.diagnosis

    def group(self) -> GroupState | None:
        return self._seen.group


def _start(num_threads: int) -> tuple[subprocess.Popen[bytes], Connection]:
    own, other = socket.socketpair()
    with own, other:
        process = subprocess.Popen(
            [sys.executable, "-c", f"from {child_process.__name__} import main; main()", str(other.fileno())],
            pass_fds=[other.fileno()],
            stdin=subprocess.PIPE,  # it closes when this process ends
            env=environment(num_threads),
        )
        return process, Connection(own.detach())


def environment(num_threads: int) -> dict[str, str]:
    """Return the variables of a process that holds models."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(num_threads),
        # Threads that spin while they wait take the core that another process needs (docs/log.md).
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive"),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TQDM_DISABLE": "1",  # transformers would draw progress bars on the user's terminal
    }
