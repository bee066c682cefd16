"""Runs the server in a thread, and ends everything where it cannot end by itself; `launch` uses it.

Calls of Ray may block for ever: its control store or its controller hangs, or its connection is dead. So they
are made in a thread, and the main thread only takes signals and watches. It ends the processes of the run and
this one

- if a process has ended without which Ray cannot heal,
- if a signal has asked for a stop and the server has not ended in time,
- if a second signal has arrived.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import NoReturn

from fewshard_serve.logs import write_line
from fewshard_serve.rayserve.signals import CallThread, StopRequest, listen

EXIT_FAILED = 1
EXIT_STOPPED_AT_ONCE = 130
POLL_S = 0.2
LOADING_LIMIT_S = 5.0
"""How long a server may take to end after a signal while no model has been promised to answer."""
LINE_TIMEOUT_S = 1.0
FINISH_TIMEOUT_S = 4.0
CLEAN_UP_TIMEOUT_S = 8.0

VitalProcesses = dict[str, "subprocess.Popen[bytes]"]
"""Processes without which Ray cannot heal, by what a user calls them."""


class Supervisor:
    """What the server's thread tells the main thread, by setting attributes.

    vital: the processes to watch. Empty it before they are ended on purpose.
    stop_limit_s: how long the server may take to end after a signal.
    owes_answers: whether accepted requests may be unanswered.
    clean_up: frees what outlives this process; called before an early end.

    `let_finish` waits until accepted requests are answered; called, for some seconds, if Ray cannot heal:
    replicas live on for a while.
    """

    def __init__(
        self,
        stop: StopRequest,
        clean_up: Callable[[], None],
        let_finish: Callable[[], None] = lambda: None,
    ) -> None:
        self.vital: VitalProcesses = {}
        self.stop_limit_s = LOADING_LIMIT_S
        self.owes_answers = False
        self.clean_up = clean_up
        self._stop = stop
        self._let_finish = let_finish
        self._failure = ""

    def fail(self, reason: str) -> None:
        """End everything soon, because the server cannot heal. `reason` completes "the server ends: "."""
        self._failure = reason

    def run(self, serve: Callable[[], int]) -> int:
        """Call `serve` in a thread and return its result, or end this process earlier. Raises as it does."""
        outcome: Future[int] = Future()

        def work() -> None:
            try:
                outcome.set_result(serve())
            except BaseException as error:  # noqa: BLE001  it is raised below
                outcome.set_exception(error)

        threading.Thread(target=work, name="fewshard-server", daemon=True).start()
        while not wait([outcome], POLL_S).done:
            listen(self._stop)  # again and again, since Ray installs its own handlers while it starts
            self._look()
        return outcome.result()

    def _look(self) -> None:
        if self._stop.is_at_once:
            self._end(EXIT_STOPPED_AT_ONCE)
        reason = self._failure or _what_has_ended(self.vital)
        if reason and not (self._stop.is_asked and not self.owes_answers):
            _try(self._let_finish, FINISH_TIMEOUT_S)
            self._end(EXIT_FAILED, f"the server ends: {reason}; start it again")
        if self._stop.asked_for_s > self.stop_limit_s:
            if self.owes_answers:
                limit = f"{self.stop_limit_s:g} s after the signal"
                self._end(EXIT_FAILED, f"not all requests were answered {limit}; the server ends")
            self._end(0)

    def _end(self, code: int, sentence: str = "") -> NoReturn:
        if sentence:
            _try(lambda: write_line(f"fewshard: {sentence}", sys.stderr), LINE_TIMEOUT_S)
        _try(self.clean_up, CLEAN_UP_TIMEOUT_S)
        os._exit(code)


def _what_has_ended(processes: VitalProcesses) -> str:
    for name, process in list(processes.items()):
        if (code := process.poll()) is not None:
            how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            return f"{name} was ended {how}, which Ray cannot heal"
    return ""


def _try(call: Callable[[], None], timeout_s: float) -> None:
    """Call it, but wait no longer than this, whatever it waits for, and whatever it raises."""
    wait([CallThread().start(call)], timeout_s)
