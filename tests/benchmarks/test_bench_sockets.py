"""Whose sockets are found, and what they ask for; servers themselves are started by the script alone."""

import os
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import grpc
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import listening_sockets

    yield listening_sockets
    sys.modules.pop("listening_sockets")


@pytest.fixture
def found_here(script):
    """The listening sockets of this process, by port or path."""
    return lambda: {one.port or one.address: one for one in script.listening([os.getpid()])}


@pytest.fixture
def http(script):
    servers = []

    def start(statuses, address="127.0.0.1"):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(statuses.get(self.path, 404))
                self.end_headers()

            def log_message(self, *_):
                pass

        server = HTTPServer((address, 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server.server_port

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("statuses", "answer"),
    [
        ({"/metrics": 200}, "nothing (HTTP)"),
        ({"/metrics": 401, "/v2/models/sst2-moe": 401}, "a token (HTTP)"),
        ({"/metrics": 401, "/-/routes": 200}, "a token (HTTP), but nothing for /-/routes"),
        ({}, "HTTP 404"),
    ],
)
def test_what_http_asks_for(script, found_here, http, statuses, answer):
    port = http(statuses)
    one = found_here()[port]
    assert (one.kind, one.address, one.is_local, script.asked(one)) == ("TCP", "127.0.0.1", True, answer)


class Refusing(grpc.GenericRpcHandler):
    def __init__(self, code):
        self.code = code

    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(lambda _, context: context.abort(self.code, ""))


@pytest.mark.parametrize(
    ("code", "answer"),
    [("UNAUTHENTICATED", "a token (gRPC)"), ("UNIMPLEMENTED", "gRPC UNIMPLEMENTED")],
)
def test_what_grpc_asks_for(script, found_here, code, answer):
    server = grpc.server(ThreadPoolExecutor(1), handlers=(Refusing(grpc.StatusCode[code]),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        assert script.asked(found_here()[port]) == answer
    finally:
        server.stop(None).wait()


def test_files_and_datagrams(script, found_here, tmp_path):
    with socket.socket(socket.AF_UNIX) as file, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        path = tmp_path / "s"
        file.bind(str(path))
        file.listen()
        datagrams.bind(("127.0.0.1", 0))
        found = found_here()
        assert found[datagrams.getsockname()[1]].kind == "UDP"
        tmp_path.chmod(0o700)
        path.chmod(0o777)
        assert script.asked(found[str(path)]) == "the server's own user"


def test_what_is_open_to_other_machines(script, found_here, http):
    port = http({"/metrics": 200}, address="0.0.0.0")
    one = found_here()[port]
    assert (one.is_local, script.is_open_to_others(one)) == (False, True)
    asks = script.replace(one, answer="a token (HTTP)")
    leaks = script.replace(one, answer="a token (HTTP), but nothing for /-/routes")
    service = script.replace(one, process="HAProxy: the service")
    assert [script.is_open_to_others(each) for each in (asks, leaks, service)] == [False, True, False]


def test_the_table_has_a_line_for_each_kind_of_socket(script):
    def one(process, address, answer):
        return script.Listening(process, "TCP", address, 1, address != "0.0.0.0", answer)

    inside, outside = one("a replica", "127.0.0.1", "nothing"), one("HAProxy", "0.0.0.0", "a token")
    assert script.table({"a": [inside, inside], "b": [inside, outside]}).splitlines()[2:] == [
        "| HAProxy | TCP | 0.0.0.0 | a token |  | 1 |",
        "| a replica | TCP | 127.0.0.1 | nothing | 2 | 1 |",
    ]
