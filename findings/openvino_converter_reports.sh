#!/usr/bin/env bash
# openvino 2026.4.1: `openvino.convert_model` reports to Google Analytics, and DO_NOT_TRACK does not stop it.
#
# A good engineer expects: a library call that turns a model into another, in a script without a terminal, opens no connection;
# or, where a package has telemetry (openvino-telemetry is a dependency of the wheel), that DO_NOT_TRACK=1 turns it off or that it
# asks first, as its own dialogue does.
# What happens: the converter switches the dialogue off and takes the absence of an answer for consent. It makes ~/intel with an
# identifier and sends its events at each call. What is heard: CI=true, `opt_in_out --opt_out`, or uninstalling
# openvino-telemetry. `import openvino` alone makes the identifier already.
# Seen: with DO_NOT_TRACK=1, a connection to www.google-analytics.com is asked of the proxy (one in this script, which
# refuses it) and an identifier is written; with CI=true neither. The script fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
proxy=
trap 'kill $proxy 2>/dev/null || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check openvino==2026.4.1 onnx==1.23.2 numpy==2.4.6
cat >"$folder/proxy.py" <<'PROGRAM'
import http.server
import sys


class Refuse(http.server.BaseHTTPRequestHandler):
    def do_CONNECT(self):
        with open(sys.argv[1], "a") as file:
            file.write(self.path + "\n")
        self.send_error(403)

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
with open(sys.argv[2], "w") as file:
    file.write(str(server.server_address[1]))
server.serve_forever()
PROGRAM
cat >"$folder/convert.py" <<'PROGRAM'
import sys

import onnx
import openvino
from onnx import TensorProto, helper

values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "relu", values[:1], values[1:])
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), sys.argv[1])
openvino.convert_model(sys.argv[1])
PROGRAM
"$folder/venv/bin/python" "$folder/proxy.py" "$folder/asked" "$folder/port" &
proxy=$!
until [ -s "$folder/port" ]; do sleep 0.1; done
convert() {
    mkdir -p "$folder/home$1"
    : >"$folder/asked"
    env -i PATH="$PATH" HOME="$folder/home$1" https_proxy="http://127.0.0.1:$(cat "$folder/port")" "$2" \
        "$folder/venv/bin/python" "$folder/convert.py" "$folder/relu.onnx" </dev/null
    echo "openvino 2026.4.1, $2: asked the proxy for: $(sort -u "$folder/asked" | xargs); in ~: $(ls "$folder/home$1" | xargs)"
}
convert 1 DO_NOT_TRACK=1
grep -q '^www.google-analytics.com:443$' "$folder/asked" && [ -s "$folder/home1/intel/openvino_ga_cid" ] || { echo "changed"; exit 1; }
convert 2 CI=true
[ ! -s "$folder/asked" ] && [ ! -e "$folder/home2/intel" ] || { echo "changed"; exit 1; }
