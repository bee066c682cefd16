"""A server that joins a Ray of somebody else: it takes away what is its own, and leaves Ray as it was."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from fewshard_serve.rayserve.environment import LOOPBACK_ONLY, TOKEN_FILE, free_ports

HERE = Path(__file__).parent
FEWSHARD = [sys.executable, "-c", "import sys; from fewshard_serve.cli import main; sys.exit(main())"]

pytestmark = [pytest.mark.server, pytest.mark.slow]


class Head:
    """The Ray that is joined."""

    def __init__(self, folder):
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "joined_server.py"), folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.address = self.process.stdout.readline().strip()

    @property
    def applications(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def head():
    with tempfile.TemporaryDirectory(prefix="fewshard-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        one = Head(folder)
        yield one
        one.process.communicate("", timeout=120)


@pytest.mark.parametrize(("signals", "code"), [([signal.SIGTERM, signal.SIGINT], 130), ([signal.SIGTERM], 0)])
def test_its_applications_go_with_it_and_ray_stays(head, tmp_path, signals, code):
    port, grpc_port = free_ports(2)
    command = [*FEWSHARD, "serve", "zoo:sst2-dense", "--address", head.address]
    command += ["--port", str(port), "--grpc-port", str(grpc_port)]
    environment = os.environ | LOOPBACK_ONLY | {TOKEN_FILE: f"{head.folder}/auth_token"}
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    try:
        until(lambda: "Try it:" in (tmp_path / "log").read_text() or server.poll() is not None)
        assert server.poll() is None, (tmp_path / "log").read_text()
        assert head.applications == ["gateway", "models"]
        for number in signals:
            server.send_signal(number)
        assert server.wait(120) == code, (tmp_path / "log").read_text()
        until(lambda: head.applications == [])
    finally:
        server.kill()


def until(condition):
    give_up_at = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.2)
