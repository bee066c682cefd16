"""The main thread ends a server that cannot end by itself, whatever its thread waits for.

Each server here is a process whose thread hangs in C, as in a call of Ray that never returns.
"""

import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

HANGS = """
import ctypes, subprocess, sys
from pathlib import Path
from fewshard_serve.rayserve.signals import stop_request
from fewshard_serve.rayserve.supervisor import Supervisor

def serve():
    supervisor.owes_answers = sys.argv[2] == "owes"
    supervisor.stop_limit_s = float(sys.argv[3])
    quiet = subprocess.DEVNULL
    vital = subprocess.Popen(["sleep", "600"], stdin=quiet, stdout=quiet, stderr=quiet)
    supervisor.vital["the heart"] = vital
    print(vital.pid, flush=True)
    ctypes.CDLL(None).sleep(600)
    return 0

with stop_request() as stop:
    supervisor = Supervisor(stop, Path(sys.argv[1]).touch, lambda: print("finished", flush=True))
    sys.exit(supervisor.run(serve))
"""


@contextmanager
def hanging(tmp_path, *, owes="owes", limit_s=600.0):
    """Yield a server once its thread hangs, the process it depends on, and the file of its cleaning up."""
    cleaned = tmp_path / "cleaned"
    command = [sys.executable, "-c", HANGS, str(cleaned), owes, str(limit_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        vital = int(process.stdout.readline())
        try:
            yield process, vital, cleaned
        finally:
            process.kill()
            subprocess.run(["kill", "-9", str(vital)], check=False, capture_output=True)


def test_a_second_signal_ends_it_at_once(tmp_path):
    with hanging(tmp_path) as (process, _, cleaned):
        process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.5)
        process.terminate()
        assert process.wait(60) == 130
        assert cleaned.exists()


@pytest.mark.parametrize(
    ("owes", "code", "said"), [("owes", 1, "not all requests were answered"), ("", 0, "")]
)
def test_it_ends_in_time_after_one_signal(tmp_path, owes, code, said):
    with hanging(tmp_path, owes=owes, limit_s=0.3) as (process, _, cleaned):
        process.terminate()
        assert process.wait(60) == code
        error = process.stderr.read()
        assert said in error
        assert len(error.splitlines()) == (1 if said else 0), error
        assert cleaned.exists()


def test_it_ends_with_what_it_cannot_live_without_and_says_so(tmp_path):
    with hanging(tmp_path) as (process, vital, cleaned):
        subprocess.run(["kill", "-9", str(vital)], check=True)
        assert process.wait(60) == 1
        (line,) = process.stderr.read().splitlines()
        assert process.stdout.read() == "finished\n", "what was accepted is answered first"
        said = "fewshard: the server ends: the heart was ended by signal SIGKILL, which Ray cannot heal"
        assert line == f"{said}; start it again"
        assert cleaned.exists()


def test_a_stop_while_nothing_is_owed_is_no_failure_though_everything_ends_at_once(tmp_path):
    """As when a signal goes to the whole group while models load."""
    with hanging(tmp_path, owes="", limit_s=1.0) as (process, vital, _):
        process.terminate()
        subprocess.run(["kill", "-9", str(vital)], check=True)
        assert process.wait(60) == 0
        assert process.stderr.read() == ""


def run(body):
    code = (
        HANGS.partition("def serve")[0] + f"\ndef serve():\n    {body}\n" + HANGS[HANGS.index("with stop") :]
    )
    command = [sys.executable, "-c", code, "/nowhere", "owes", "1"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_what_the_server_returns_and_raises_comes_through():
    assert run("return 7").returncode == 7
    raised = run("raise LookupError('as it is')")
    assert raised.returncode == 1
    assert raised.stderr.endswith("LookupError: as it is\n")


def test_a_cleaning_up_that_hangs_delays_the_end_only_so_long(tmp_path):
    code = HANGS.replace("Path(sys.argv[1]).touch", "lambda: ctypes.CDLL(None).sleep(600)")
    code = code.replace(
        "import Supervisor", "import Supervisor\nfrom fewshard_serve.rayserve import supervisor as m"
    )
    code = code.replace("def serve", "m.CLEAN_UP_TIMEOUT_S = 0.2\n\ndef serve")
    command = [sys.executable, "-c", code, "", "", "0.2"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        vital = process.stdout.readline().strip()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        subprocess.run(["kill", "-9", vital], check=False)
