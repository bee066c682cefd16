"""The doors of a real server: tokens, slow clients, request ids, log lines, and which ports listen where."""

import json
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from fewshard_serve.auth import hash_of
from fewshard_serve.client import Client, ClientError

pytestmark = pytest.mark.server

APP, OPS = "app-secret", "ops-secret"
MAX_BODY_S = 2.0
MODELS = [{"name": "dense", "path": "dense"}, {"name": "own", "path": "moe", "replicas": {"min": 2}}]


def tokens_text(**scopes):
    lines = [
        f"  - {{name: {token[:3]}, sha256: {hash_of(token).hex()}, scopes: [{what}]}}"
        for token, what in scopes.items()
    ]
    return "\n".join(["tokens:", *lines])


@pytest.fixture(scope="module")
def tokens_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("auth") / "tokens.yaml"
    path.write_text(tokens_text(**{APP: "predict", OPS: "predict, admin"}))
    return path


@pytest.fixture(scope="module")
def server(start_server, tokens_file):
    more = {
        "auth": {"tokens_file": str(tokens_file)},
        "limits": {"max_body_s": MAX_BODY_S},
        "logging": {"format": "json", "requests": True},
        "cascades": [{"name": "auto", "stages": ["dense", "own"], "accept_above": 0.9}],
    }
    return start_server(MODELS, **more).wait_until_ready()


def ask(server, path, token=None, method="POST", **headers):
    if token:
        headers["Authorization"] = f"Bearer {token}"
    body = {"model": "dense", "inputs": "1"} if path == "/classify" else {"inputs": "1"}
    return httpx.request(method, server.url + path, json=body, headers=headers, timeout=20)


@pytest.mark.parametrize("path", ["/v2/models/dense/classify", "/v2/models/own/classify", "/classify"])
def test_every_door_asks_for_a_token(server, path):
    refused = ask(server, path)
    assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
    assert refused.headers["www-authenticate"] == "Bearer"
    assert ask(server, path, "wrong").status_code == 401
    assert ask(server, path, APP).status_code == 200


def test_health_is_open(server):
    for path in ("/v2/health/live", "/v2/health/ready", "/-/healthz"):
        assert httpx.get(server.url + path).status_code == 200


@pytest.mark.parametrize("path", ["/v2/models/{}/ready", "/v2/models/{}", "/-/routes"])
def test_names_of_models_are_for_those_who_have_a_token(server, path):
    answers = [httpx.get(server.url + path.format(name)) for name in ("dense", "own", "auto", "nobody")]
    assert len({(answer.status_code, answer.content) for answer in answers}) == 1
    assert not any(name in answers[0].text for name in ("dense", "own", "auto"))
    authorised = {"Authorization": f"Bearer {APP}"}
    assert path == "/-/routes" or ask(server, path.format("own"), APP, "GET").status_code == 200
    assert httpx.get(f"{server.url}/-/routes", headers=authorised).json()["code"] == "not_found"


def test_an_admin_makes_every_replica_read_the_tokens_again(server, tokens_file):
    assert ask(server, "/v2/tokens/reload", APP).status_code == 403
    tokens_file.write_text(tokens_text(**{APP: "predict", OPS: "predict, admin", "new-secret": "predict"}))
    answer = ask(server, "/v2/tokens/reload", OPS)
    assert answer.json() == {"tokens": 3, "replicas": 5}
    for _ in range(6):
        assert ask(server, "/v2/models/own/classify", "new-secret").status_code == 200


@pytest.mark.parametrize("path", ["/v2/models/dense/classify", "/classify"])
def test_a_request_id_comes_back_once_and_an_odd_one_never(server, path):
    answer = ask(server, path, APP, **{"X-Request-Id": "mine-1"})
    assert answer.headers.get_list("x-request-id") == ["mine-1"]
    for odd in ("<b>", "a b", "x" * 200):
        (given,) = ask(server, path, APP, **{"X-Request-Id": odd}).headers.get_list("x-request-id")
        assert len(given) >= 32
        assert given != odd


def test_tritonclient_speaks_grpc_with_a_token(server):
    text = triton.InferInput("text", [2], "BYTES")
    text.set_data_from_numpy(np.array([b"3", b"-1"], dtype=object))
    headers = {"authorization": f"Bearer {APP}"}
    with triton.InferenceServerClient(f"127.0.0.1:{server.config['server']['grpc_port']}") as client:
        assert client.is_server_ready()
        for model in ("dense", "own"):
            result = client.infer(model, [text], headers=headers)
            assert result.as_numpy("logits").tolist() == [[3, -3], [-1, 1]]
        with pytest.raises(InferenceServerException, match="token"):
            client.infer("dense", [text])


def test_the_python_client_sends_its_token(server, monkeypatch):
    with Client(server.url, token=APP) as client:
        predictions = list(client.classify_all("own", ["3", "-1", "2"], batch_size=2))
    assert [each.label for each in predictions] == ["no", "yes", "no"]
    monkeypatch.setenv("FEWSHARD_TOKEN", "wrong-secret")
    with Client(server.url) as client, pytest.raises(ClientError, match="401") as refusal:
        client.classify("own", "3")
    assert (refusal.value.status, refusal.value.server_code) == (401, "unauthorized")


@pytest.mark.parametrize("path", ["/v2/models/auto/classify", "/classify"])
def test_a_cascade_is_a_model_too(server, path):
    body = {"inputs": ["3", "0.1", "-3"]} | ({"model": "auto"} if path == "/classify" else {})
    headers = {"Authorization": f"Bearer {APP}"}
    answer = httpx.post(server.url + path, json=body, headers=headers, timeout=20).json()
    assert answer["stages"] == ["dense", "own", "dense"]
    assert [each[0]["label"] for each in answer["predictions"]] == ["no", "no", "yes"]
    metrics = httpx.get(f"{server.url}/metrics", headers=headers, timeout=20).text
    (line,) = [
        each
        for each in metrics.splitlines()
        if each.startswith("fewshard_cascade_items_total") and "own" in each
    ]
    assert float(line.rpartition(" ")[2]) >= 1
    index = httpx.post(f"{server.url}/v2/repository/index", headers=headers).json()
    assert {entry["name"]: entry["state"] for entry in index}["auto"] == "READY"


def log_lines(server):
    return [json.loads(line) for line in server.lines if line.startswith("{")]


def test_requests_are_json_lines_with_their_ids_and_without_secrets(server):
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    traced = {"X-Request-Id": "find-me", "traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
    ask(server, "/v2/models/dense/classify", APP, **traced)
    give_up_at = time.monotonic() + 10
    while not (found := [line for line in log_lines(server) if line.get("request_id") == "find-me"]):
        assert time.monotonic() < give_up_at, server.output
        time.sleep(0.05)
    (line,) = found
    wanted = {"trace_id": trace_id, "status": 200, "model": "dense", "caller": "app", "method": "POST"}
    assert line.items() >= wanted.items()
    assert "secret" not in server.output
    torn = [line for line in server.lines if '{"time"' in line[1:] or not line.endswith("\n")]
    assert torn == [], "every line of every process is whole"


def connect(server):
    return socket.create_connection(("127.0.0.1", server.config["server"]["port"]), timeout=30)


def read_all(connection):
    received = b""
    while chunk := connection.recv(65536):
        received += chunk
    return received


def send_headers_without_end(server):
    """The answer, and after how many seconds it came."""
    started_at = time.monotonic()
    with connect(server) as slow:
        slow.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        return read_all(slow), time.monotonic() - started_at


def trickle_a_body(server, path):
    """A byte every 0.2 s; the answer, and after how many seconds it came."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {APP}\r\nContent-Length: 999\r\n\r\n"
    with connect(server) as slow:
        slow.sendall(head.encode())
        slow.settimeout(0.2)
        received, started_at = b"", time.monotonic()
        while b"\r\n\r\n" not in received and time.monotonic() - started_at < 15:
            slow.sendall(b" ")
            try:
                received += slow.recv(65536)
            except TimeoutError:
                continue
        return received, time.monotonic() - started_at


@pytest.fixture(scope="module", autouse=True)
def slow_clients(server):
    """What slow clients get. They wait side by side, while the other tests run."""
    paths = ["/v2/models/dense/classify", "/classify"]
    with ThreadPoolExecutor(3) as pool:
        yield {
            "headers": pool.submit(send_headers_without_end, server),
            **{path: pool.submit(trickle_a_body, server, path) for path in paths},
        }


@pytest.mark.parametrize("path", ["/v2/models/dense/classify", "/classify"])
def test_a_client_that_trickles_its_body_is_cut(slow_clients, path):
    received, elapsed_s = slow_clients[path].result()
    assert received.startswith(b"HTTP/1.1 408 ")
    assert MAX_BODY_S - 0.5 < elapsed_s < MAX_BODY_S + 5


HEAD = f"POST /classify HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {APP}\r\n".encode()
BODY = b'{"model":"dense","inputs":"1"}'
NEXT = b"GET /v2/tokens/reload HTTP/1.1\r\nHost: x\r\n\r\n"
RAW = {
    "two lengths that differ": HEAD + b"Content-Length: 5\r\nContent-Length: 30\r\n\r\n" + BODY,
    "a length beside chunks": HEAD
    + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n1e\r\n"
    + BODY
    + b"\r\n0\r\n\r\n"
    + NEXT,
    "chunks under another name": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + NEXT,
    "chunked twice": HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n" + NEXT,
    "a chunk of 2^64 bytes": HEAD + b"Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\nabc",
    "a chunk that lies": HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcdef\r\n0\r\n\r\n",
    "a negative length": HEAD + b"Content-Length: -1\r\n\r\n" + BODY,
    "a length with a sign": HEAD + b"Content-Length: +30\r\n\r\n" + BODY,
    "a length of ages": HEAD + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n" + BODY,
    "less than the length, then the end": HEAD + b"Content-Length: 300\r\n\r\n" + BODY,
    "more than the length": HEAD + b"Content-Length: 3\r\n\r\n" + BODY,
    "a space before the colon": HEAD + b"Content-Length : 30\r\n\r\n" + BODY,
    "a folded header": HEAD + b"X-Folded: a\r\n b\r\nContent-Length: 30\r\n\r\n" + BODY,
    "a zero byte in a header": HEAD + b"X-Zero: a\0b\r\nContent-Length: 30\r\n\r\n" + BODY,
    "headers without end": HEAD + b"X-Long: " + b"a" * 200_000,
    "many headers": HEAD + b"".join(b"X-%d: 1\r\n" % n for n in range(3000)) + b"\r\n",
    "another protocol": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500,
    "nothing": b"",
}


@pytest.mark.parametrize("name", RAW)
def test_what_is_nearly_http_does_no_harm(server, name):
    """No answer is a 5xx but `not implemented`, and the next request is served."""
    with connect(server) as client:
        try:
            client.sendall(RAW[name])
            client.shutdown(socket.SHUT_WR)
            answers = read_all(client)
        except OSError:  # it has hung up
            answers = b""
    statuses = [int(part[:3]) for part in answers.split(b"HTTP/1.1 ")[1:]]
    assert all(200 <= status < 500 or status == 501 for status in statuses), answers
    assert ask(server, "/classify", APP).status_code == 200


def listening(pids):
    """(address, port) of every TCP socket on which one of the processes listens."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            target = os.readlink(link) if link.is_symlink() else ""
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    found = set()
    for family, kind in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{family}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                address, _, port = fields[1].partition(":")
                words = [bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8)]
                found.add((socket.inet_ntop(kind, b"".join(words)), int(port, 16)))
    return found


def is_loopback(address):
    return address in ("127.0.0.1", "::1", "::ffff:127.0.0.1")


def test_ports_are_for_this_machine_alone_or_ask_for_rays_token(server):
    """What listens on every address is Serve's own between replicas; it refuses who lacks Ray's token."""
    ports = listening(server.processes())
    assert server.config["server"]["grpc_port"] in {port for _, port in ports}
    assert len(ports) > 5
    outside = [port for address, port in ports if not is_loopback(address)]
    assert len(outside) <= 5, "one for each replica"
    for port in outside:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
            with pytest.raises(grpc.RpcError) as refusal:
                call(b"", timeout=10)
            assert refusal.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_client_that_never_ends_its_headers_is_cut(slow_clients):
    received, elapsed_s = slow_clients["headers"].result()
    assert received.startswith(b"HTTP/1.1 408 ")
    assert 5 < elapsed_s < 20
