"""What a real browser lets a page of another site do to a server without tokens: nothing."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

BODY = '{"inputs": "a"}'
PATH = "/v2/models/labels/classify"
SEND = """async ([url, body]) => {
  const answer = await fetch(url, { method: "POST", mode: "no-cors", body });
  return answer.type;
}"""
ASK = """async ([url, body]) => {
  const answer = await fetch(url, { method: "POST", body });
  return [answer.status, await answer.text()];
}"""


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>another site</title><link rel=icon href=data:,>")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(params=["127.0.0.2", "127.0.0.1"], ids=["another site", "another port"])
def other_site(request) -> Iterator[str]:
    server = HTTPServer((request.param, 0), Page)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://{request.param}:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def model(labels_model):
    return labels_model("labels", 3)


def test_another_page_sends_and_is_refused(serve, model, open_page, other_site) -> None:
    server = serve([model])
    assert open_page(other_site).evaluate(SEND, [server.url + PATH, BODY]) == "opaque"
    assert model.num_rows == 0
    assert open_page(server.url).evaluate(ASK, [PATH, BODY])[0] == 200
    assert model.num_rows == 1


def test_a_name_that_is_made_to_resolve_to_this_machine_is_refused(serve, model, open_page) -> None:
    server = serve([model])
    page = open_page(f"http://evil.example:{server.port}/")
    status, text = page.evaluate(ASK, [PATH, BODY])
    assert (status, "callers.hosts" in text) == (403, True)
    assert page.evaluate("async () => (await fetch('/metrics')).status") == 403
    assert model.num_rows == 0
