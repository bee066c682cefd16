#!/usr/bin/env bash
# grpcio 1.85.1: a server option spelt as its C macro is ignored in silence; the right name lacks a word of the macro.
#
# A good engineer expects: `GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS`, which gRPC's guide to keep-alive names,
# is "grpc.http2.min_recv_ping_interval_without_data_ms", as other macros are their strings in capitals; an option that does
# not exist is an error or a line in the log.
# What happens: the string is "grpc.http2.min_ping_interval_without_data_ms" without "recv". The other one changes nothing
# and nothing says so: the server keeps to its five minutes, and ends the connections of clients that ping more often, with
# the calls that are open on them.
# Seen: five HTTP/2 pings, 0.3 s apart, to a server that was given 1 ms: GOAWAY "too_many_pings" under the first name, five
# acknowledgements under the second. The script fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check grpcio==1.85.1
"$folder/venv/bin/python" - <<'PROGRAM'
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import grpc

AS_MACRO = "grpc.http2.min_recv_ping_interval_without_data_ms"
RIGHT = "grpc.http2.min_ping_interval_without_data_ms"
SETTINGS, PING = 4, 6


def frame(kind: int, body: bytes = b"", flags: int = 0) -> bytes:
    return len(body).to_bytes(3, "big") + bytes([kind, flags, 0, 0, 0, 0]) + body


def kinds(received: bytes) -> list[int]:
    """The kinds of all frames, in order."""
    found = []
    while len(received) >= 9:
        found.append(received[3])
        received = received[9 + int.from_bytes(received[:3], "big") :]
    return found


def ping(option: str) -> tuple[bool, int]:
    """Whether the server said GOAWAY, and how many pings it acknowledged."""
    server = grpc.server(ThreadPoolExecutor(1), options=[(option, 1), ("grpc.keepalive_permit_without_calls", 1)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    received = b""
    try:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS))
            connection.settimeout(2)
            for _ in range(5):
                connection.sendall(frame(PING, b"8 bytes."))
                time.sleep(0.3)
                received += connection.recv(65536)
            while part := connection.recv(65536):
                received += part
    except (ConnectionError, TimeoutError):
        pass  # the connection was ended, or there is nothing more to hear
    finally:
        server.stop(None).wait()
    return b"too_many_pings" in received, kinds(received).count(PING)


found = {option: ping(option) for option in (AS_MACRO, RIGHT)}
print(f"grpcio {grpc.__version__}: GOAWAY, and pings acknowledged: {found}")
assert found[AS_MACRO][0], "changed: the server ended the connection under the macro's name"
assert found[RIGHT] == (False, 5), "changed: all five pings were acknowledged under the right name"
PROGRAM
