#!/usr/bin/env bash
# huggingface_hub 2.4.0: text_classification gives one label, not a list, from text-embeddings-inference.
#
# A good engineer expects: both are Hugging Face's and take the same body, {"inputs": "a text"}, so the client reads the
# server's answer; its signature promises a list of labels with scores.
# What happens: the client takes the first element of whatever comes, because the older API wrapped the answer of one text
# in a list: [[{label, score}, ...]]. text-embeddings-inference's POST /predict answers [{label, score}, ...] to a single
# text (its OpenAPI document says so). The first element then is the best label alone: a single object in place of the
# list, no error, and `for each in answer` walks the names of its fields.
# Seen: one TextClassificationOutputElement from the flat answer, a list of two from the nested one. A server of a few
# lines on loopback plays both. The script fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check huggingface_hub==2.4.0
HF_HOME="$folder/home" NO_PROXY=127.0.0.1 "$folder/venv/bin/python" - <<'PROGRAM'
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import huggingface_hub
from huggingface_hub import InferenceClient

SCORES = [{"label": "good", "score": 0.9}, {"label": "bad", "score": 0.1}]
ANSWERS = {"/predict": SCORES, "/nested": [SCORES]}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps(ANSWERS[self.path]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


server = HTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
address = f"http://127.0.0.1:{server.server_port}"
flat, nested = (InferenceClient(base_url=address + path).text_classification("a text") for path in ANSWERS)
server.shutdown()
print(f"huggingface_hub {huggingface_hub.__version__}\nflat answer: {flat}\nnested answer: {nested}")
assert isinstance(nested, list) and [each.label for each in nested] == ["good", "bad"], "changed for the nested answer"
assert not isinstance(flat, list) and flat.label == "good", "changed: it was one element"
PROGRAM
