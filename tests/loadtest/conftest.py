"""Fixtures of the load test's tests: servers of known service time, each a process of its own."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parent / "simulated_server.py"
Start = Callable[[dict[str, dict[str, Any]]], str]


@pytest.fixture
def simulated() -> Iterator[Start]:
    """Call it with the models; it returns the server's URL."""
    started: list[subprocess.Popen[bytes]] = []

    def start(models: dict[str, dict[str, Any]]) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started.append(subprocess.Popen([sys.executable, str(PROGRAM), str(port), json.dumps(models)]))
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return f"http://127.0.0.1:{port}"
            time.sleep(0.05)
        raise AssertionError("the simulated server did not start")

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Forty labelled texts; the simulated server can tell the fine ones."""
    rows = [
        f"number {i} is {'fine' if i % 2 else 'bad'} {i * 7919},{'positive' if i % 2 else 'negative'}"
        for i in range(40)
    ]
    file = tmp_path / "texts.csv"
    file.write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return file
