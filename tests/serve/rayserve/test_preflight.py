"""What is checked before anything starts: ports and who holds them, files, the disk."""

import resource
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from fewshard_serve.config import FewshardConfig, ServerConfig
from fewshard_serve.errors import StartError
from fewshard_serve.rayserve import launch, preflight, run_folder
from fewshard_serve.rayserve.environment import free_ports
from fewshard_serve.rayserve.preflight import check_files, check_port, check_space, ports_held

LISTENER = """
import socket, sys
with socket.socket() as listener:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as HAProxy does
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    print(listener.getsockname()[1], flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def listener():
    """A process of something else, and its port."""
    command = [sys.executable, "-c", LISTENER, "a-listener-of-something-else"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield process.pid, int(process.stdout.readline())
        process.kill()


def test_the_message_names_who_listens_and_says_what_to_do(listener):
    pid, port = listener
    with pytest.raises(StartError, match=f"port {port} is in use by process {pid} .*python.*--port"):
        check_port(ServerConfig(port=port))


def test_a_server_of_ours_is_named_by_its_launcher(listener, monkeypatch):
    _, port = listener
    monkeypatch.setattr(preflight, "launcher_of", lambda pid: 4321)
    with pytest.raises(
        StartError, match=rf"port {port} is in use by another Fewshard server \(process 4321\)"
    ):
        check_port(ServerConfig(port=port))


def test_the_port_for_grpc_is_looked_at_too(listener):
    _, port = listener
    with pytest.raises(StartError, match=f"port {port} is in use.*--grpc-port"):
        check_port(ServerConfig(port=free_ports(1)[0], grpc_port=port))
    check_port(ServerConfig(port=free_ports(1)[0], grpc_port=0))


def test_a_free_port_is_left_free():
    port, grpc_port = free_ports(2)
    check_port(ServerConfig(port=port, grpc_port=grpc_port))
    check_port(ServerConfig(port=port, grpc_port=grpc_port))


@pytest.mark.skipif(sys.platform != "linux", reason="the name that is held is one of Linux")
def test_of_two_that_start_at_once_one_is_told(monkeypatch):
    """Neither listens yet, so that the port is free for both."""
    port, other = free_ports(2)
    with ports_held(ServerConfig(port=port, grpc_port=0)):
        with socket.socket() as haproxy:
            haproxy.bind(("127.0.0.1", port))
        with pytest.raises(StartError, match=f"another Fewshard server is starting on port {port}.*--port"):
            check_port(ServerConfig(port=port, grpc_port=0))
        with pytest.raises(
            StartError, match=f"another Fewshard server is starting on port {port}.*--grpc-port"
        ):
            check_port(ServerConfig(port=other, grpc_port=port))
    check_port(ServerConfig(port=port, grpc_port=0))


def test_an_address_that_is_not_ours():
    with pytest.raises(StartError, match=r"192\.0\.2\.77"):
        check_port(ServerConfig(host="192.0.2.77", port=18000))


def test_too_few_files_are_told_with_the_number_that_is_needed(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 1024))
    with pytest.raises(
        StartError, match=r"only 1024 files here, and HAProxy needs 9192.*ulimit -Hn.*LimitNOFILE"
    ):
        check_files()
    monkeypatch.setenv("RAY_SERVE_HAPROXY_MAXCONN", "10")
    check_files_of(monkeypatch, 1020)
    with pytest.raises(StartError, match="1020"):
        check_files_of(monkeypatch, 1019)
    check_files_of(monkeypatch, resource.RLIM_INFINITY)


def check_files_of(monkeypatch, hard):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, hard))
    check_files()


def test_a_folder_that_cannot_be_written_is_told_in_one_sentence(monkeypatch):
    monkeypatch.setattr(run_folder, "ROOT", Path("/proc"))  # not even root can write there
    port, grpc_port = free_ports(2)
    config = FewshardConfig(
        models=[{"name": "a", "path": "x"}], server={"port": port, "grpc_port": grpc_port}
    )
    with pytest.raises(StartError, match=r"cannot write there \(.+\); make it writable, or mount"):
        launch.serve_until_signalled(config, on_ready=lambda: None)


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    check_space(str(tmp_path))
    usage = namedtuple("usage", "total used free")(2**30, 2**30, 3 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StartError, match=r"only 3 MiB are free on the disk of .*; delete"):
        check_space(str(tmp_path))
