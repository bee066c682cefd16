"""Lines of several processes in one stream: each is written at once, so that none comes between another's.

Standard output of the processes here is a socket of datagrams: what one system call writes is one message.
"""

import logging
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from fewshard_serve.logs import LineHandler, write_line

LINE = 'x\u00e9 {"time": 1}\nsecond'


def messages_of(code, **env):
    """What each system call of a process that runs `code` wrote to its two streams."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-c", code], stdout=theirs, stderr=theirs, env={**os.environ, **env}
            )
        received = list(iter(lambda: ours.recv(65536).decode(), ""))
    assert process.wait(60) == 0, received
    return received


@pytest.fixture(params=["", "1"], ids=["buffered", "unbuffered"])
def unbuffered(request):
    """PYTHONUNBUFFERED, with which `print` makes two system calls of a line, as many containers set it."""
    return request.param


def test_print_alone_tears_the_line_from_its_end():
    """Else the tests below could not fail."""
    assert messages_of("print('READY')", PYTHONUNBUFFERED="1") == ["READY", "\n"]


def test_a_line_is_one_write(unbuffered):
    code = "import sys; from fewshard_serve.logs import write_line; write_line('READY'); "
    code += f"write_line({LINE!r}, sys.stderr)"
    assert messages_of(code, PYTHONUNBUFFERED=unbuffered) == ["READY\n", f"{LINE}\n"]


def test_a_line_comes_after_what_was_printed_before(unbuffered):
    code = "from fewshard_serve.logs import write_line; print('a', end=' '); write_line('b')"
    assert "".join(messages_of(code, PYTHONUNBUFFERED=unbuffered)) == "a b\n"


def test_no_line_holds_the_password_of_a_url(capsys):
    write_line("no answer from redis://user:s3cret@host:6379")
    record = logging.LogRecord("x", logging.ERROR, "", 0, "%s", ("http://user:s3cret@host",), None)
    LineHandler(sys.stdout).emit(record)
    assert capsys.readouterr().out == "no answer from redis://***@host:6379\nhttp://***@host\n"


def test_the_launcher_writes_after_the_lines_of_others_in_a_file(tmp_path):
    """As under `fewshard serve > FILE 2>&1`, where replicas append to the same file."""
    code = "import sys; from fewshard_serve.logs import keep_lines_whole, write_line; keep_lines_whole(); "
    code += "write_line('first'); sys.stdin.readline(); write_line('last', sys.stderr); print('printed')"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )
    give_up_at = time.monotonic() + 60
    while not (tmp_path / "log").read_bytes():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
    with (tmp_path / "log").open("a") as replica:
        replica.write("a line of a replica\n")
    process.communicate("\n")
    assert (tmp_path / "log").read_text() == "first\na line of a replica\nlast\nprinted\n"


def test_what_others_print_in_the_launcher_is_one_write(unbuffered):
    """Ray prints the lines of its workers, a thread of the launcher's, with `print`."""
    code = "import sys; from fewshard_serve.logs import keep_lines_whole; keep_lines_whole(); "
    code += "print('of', 'Ray', file=sys.stderr); print('READY')"
    assert messages_of(code, PYTHONUNBUFFERED=unbuffered) == ["of Ray\n", "READY\n"]


def test_a_log_line_of_a_replica_is_one_write_with_its_traceback(unbuffered):
    code = """
from fewshard_serve.logs import LogSettings
from fewshard_serve.rayserve.actor_process import configure_logging
import logging
configure_logging(LogSettings("text"))
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("fewshard_serve.engine").exception("it failed")
"""
    (message,) = messages_of(code, PYTHONUNBUFFERED=unbuffered)
    assert message.startswith("ERROR fewshard_serve.engine: it failed\nTraceback")
    assert message.endswith("division by zero\n")


def test_lines_of_threads_and_of_the_log_file_stay_whole(tmp_path):
    """As many writers as there are replicas, each with its own open file, longer lines than a buffer."""
    lines = [f"{letter}{letter * 9000}" for letter in "abcd"]

    def write(line):
        with (tmp_path / "log").open("a", encoding="utf-8") as stream:
            handler = LineHandler(stream)
            for _ in range(50):
                handler.emit(logging.LogRecord("n", logging.INFO, "p", 1, line, None, None))

    threads = [threading.Thread(target=write, args=(line,)) for line in lines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted((tmp_path / "log").read_text().splitlines()) == sorted(lines * 50)


def test_a_stream_in_memory_gets_the_line_too(capsys):
    write_line("here")
    write_line("there", sys.stderr)
    assert capsys.readouterr() == ("here\n", "there\n")
