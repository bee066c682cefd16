"""The generator sends each request once, and counts all that it sent; Locust by itself does neither."""

import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fewshard_loadtest import Plan, run_headless

Start = Callable[[type[socketserver.BaseRequestHandler]], str]
ANSWER = b'{"predictions": [[{"label": "positive", "score": 1}]], "outputs": []}'


class _Handler(socketserver.StreamRequestHandler):
    """Reads one request; subclasses answer it or not."""

    received: list[bytes]

    def handle(self) -> None:
        """Keep the body."""
        length = 0
        while (line := self.rfile.readline().strip().lower()) != b"":
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        self.received.append(self.rfile.read(length))


@pytest.fixture
def start() -> Iterator[Start]:
    servers: list[Any] = []

    def start(handler: type[socketserver.BaseRequestHandler]) -> str:
        server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_request_whose_connection_ends_is_sent_once(start: Start) -> None:
    class Closing(_Handler):
        received: list[bytes] = []  # noqa: RUF012  one for the test

    result = run_headless(Plan(start(Closing), "m", duration_s=0.4, warmup_s=0))
    assert result.num_failures == result.num_requests > 0
    assert len(set(Closing.received)) == len(Closing.received), "each of the first requests has its own text"


def test_what_is_in_flight_at_the_end_is_counted(start: Start) -> None:
    """No answer is there before the run's end."""

    class Slow(_Handler):
        received: list[bytes] = []  # noqa: RUF012  one for the test

        def handle(self) -> None:
            super().handle()
            time.sleep(0.8)
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(ANSWER) + ANSWER)

    result = run_headless(Plan(start(Slow), "m", rate=20, duration_s=0.5, warmup_s=0))
    assert result.num_failures == 0
    assert 0 < result.num_requests <= len(Slow.received)
