#!/usr/bin/env bash
# Locust 2.47.0: FastHttpUser repeats a GET, PUT or DELETE eleven times at closed connections, and reports one.
#
# A good engineer expects: a load generator sends what the test asks for: one call, one request, one line in the statistics,
# as Locust's other client (HttpUser) does.
# What happens: `max_retries` is 0 and does not count here. Below it geventhttpclient 2.6.1 sends an idempotent request anew
# whenever a connection ends without an answer, once more than the user's pool has connections (`concurrency`, 10). A
# server that breaks under load gets up to twelve times the load that the report shows, and the time of all twelve is that
# of one request.
# Seen: 12 requests at the server for GET, PUT and DELETE, 1 for POST; each is one failure in the statistics. The script
# fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check locust==2.47.0 geventhttpclient==2.6.1
"$folder/venv/bin/python" - <<'PROGRAM'
from gevent import monkey

monkey.patch_all()
import locust
from gevent.server import StreamServer
from locust import FastHttpUser
from locust.env import Environment

received = []


def close_unanswered(connection, _address):
    head = b""
    while b"\r\n\r\n" not in head:
        part = connection.recv(4096)
        if not part:
            return
        head += part
    received.append(head.split()[0].decode())
    connection.close()


server = StreamServer(("127.0.0.1", 0), close_unanswered)
server.start()


class User(FastHttpUser):
    host = f"http://127.0.0.1:{server.server_port}"


environment = Environment(user_classes=[User])
reported = []
environment.events.request.add_listener(
    lambda request_type, exception, **_: reported.append((request_type, exception is not None))
)
user = User(environment)
methods = ("GET", "PUT", "DELETE", "POST")
for method in methods:
    user.client.request(method, "/")
server.stop()
counts = {method: received.count(method) for method in methods}
print(f"locust {locust.__version__}: requests that the server got: {counts}; failures in the statistics: {reported}")
assert counts == {"GET": 12, "PUT": 12, "DELETE": 12, "POST": 1}, "changed: it was 12, 12, 12 and 1"
assert reported == [(method, True) for method in methods], "changed: it was one failure each"
PROGRAM
