#!/usr/bin/env bash
# mosec 0.9.8: `max_wait_time=0` waits 10 ms for every batch.
#
# A good engineer expects: append_worker(…, max_batch_size=8, max_wait_time=0) takes what is queued and never waits for more;
# 0 is the parameter's own default, and 1 means one millisecond.
# What happens: a value below 1 is replaced by the command line's --wait, a deprecated option whose default is 10 ms, so that a
# lone request to a model that needs no time takes over 10 ms. The shortest wait that can be asked for is 1 ms, unless
# --wait 0 is given too.
# Seen: the fastest of 40 lone requests takes 10 to 11 ms with 0, and about 2 ms with 1. The script fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
server=
trap 'kill $server 2>/dev/null || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check mosec==0.9.8
cat >"$folder/server.py" <<'PROGRAM'
import os

from mosec import Server, Worker


class Nothing(Worker):
    def forward(self, data):
        return data


if __name__ == "__main__":
    server = Server()
    server.append_worker(Nothing, max_batch_size=8, max_wait_time=int(os.environ["WAIT_MS"]))
    server.run()
PROGRAM
cat >"$folder/ask.py" <<'PROGRAM'
import http.client
import sys
import time

port, times = int(sys.argv[1]), []
until = time.monotonic() + 60
while True:
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/")
        connection.getresponse().read()
        break
    except OSError:
        if time.monotonic() > until:
            sys.exit("the server does not start")
        time.sleep(0.2)
for _ in range(40):
    begun = time.perf_counter()
    connection.request("POST", "/inference", b"{}")
    connection.getresponse().read()
    times.append(1000 * (time.perf_counter() - begun))
print(f"{min(times):.1f}")
PROGRAM
fastest() {
    local port
    port=$("$folder/venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    WAIT_MS=$1 "$folder/venv/bin/python" "$folder/server.py" --address 127.0.0.1 --port "$port" >"$folder/log" 2>&1 &
    server=$!
    "$folder/venv/bin/python" "$folder/ask.py" "$port" >"$folder/answer"
    kill "$server" && wait "$server" || true
    cat "$folder/answer"
}
fastest 0 >"$folder/zero"
fastest 1 >"$folder/one"
zero=$(cat "$folder/zero") one=$(cat "$folder/one")
echo "mosec 0.9.8, the fastest lone request: max_wait_time=0: $zero ms, max_wait_time=1: $one ms"
python3 -c "import sys; sys.exit(not (10 <= $zero and $one < 10))" || { echo "changed"; exit 1; }
