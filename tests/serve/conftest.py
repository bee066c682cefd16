"""One real server over the bundled zoo, started as a user starts it, for all tests that only ask it."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fewshard_serve.rayserve.environment import free_ports

START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 60


@pytest.fixture(scope="session")
def zoo_url(tmp_path_factory) -> Iterator[str]:
    """The URL of `fewshard serve`; at the end the server must stop by itself on SIGTERM, with exit code 0."""
    (port, grpc_port), log = free_ports(2), tmp_path_factory.mktemp("zoo") / "serve.log"
    command = [str(Path(sys.executable).with_name("fewshard")), "serve", "--port", str(port)]
    command += ["--grpc-port", str(grpc_port)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process, log)
        yield f"http://127.0.0.1:{port}"
        process.terminate()
        assert process.wait(STOP_TIMEOUT_S) == 0, log.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)


def wait_until_ready(url: str, process: subprocess.Popen, log: Path) -> None:
    give_up_at = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < give_up_at:
        assert process.poll() is None, f"the server ended:\n{log.read_text()}"
        try:
            paths = ["/v2/health/ready", "/v2/models/sst2-moe/ready"]  # the gateway's, and the host's own
            if all(httpx.get(url + path).status_code == 200 for path in paths):
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"not ready after {START_TIMEOUT_S} s:\n{log.read_text()}")
