"""Requests nobody should send: each gets a 4xx with a reason, none a 5xx, and the next is answered."""

import gzip
import json
import struct
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fewshard_serve.http.gateway import GatewayApp
from fewshard_serve.http.host import HostApp

Call = Callable[..., httpx.Response]

SIZE = "Inference-Header-Content-Length"
TEXT = {"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}


def binary(shape: list[int], raw: bytes, datatype: str = "BYTES", name: str = "text") -> dict[str, Any]:
    """A V2 request whose one tensor is these bytes, whatever its shape says."""
    tensor = {
        "name": name,
        "datatype": datatype,
        "shape": shape,
        "parameters": {"binary_data_size": len(raw)},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    return {"content": head + raw, "headers": {SIZE: str(len(head))}}


def as_json(document: object, **headers: str) -> dict[str, Any]:
    return {"content": json.dumps(document).encode(), "headers": headers}


def inputs(**changed: object) -> dict[str, Any]:
    return as_json({"inputs": [TEXT | changed]})


INFER: dict[str, dict[str, Any]] = {
    "nothing": {"content": b""},
    "one byte": {"content": b"\0"},
    "not JSON": {"content": b"<xml/>"},
    "a JSON string": {"content": b'"inputs"'},
    "a byte order mark": {"content": b"\xef\xbb\xbf" + json.dumps({"inputs": [TEXT]}).encode()},
    "UTF-16": {"content": json.dumps({"inputs": [TEXT]}).encode("utf-16")},
    "NaN": {"content": b'{"inputs":[NaN]}'},
    "cut short": {"content": json.dumps({"inputs": [TEXT]}).encode()[:-2]},
    "deep lists": {"content": b"[" * 100_000},
    "deep objects": {"content": b'{"a":' * 30_000},
    "deep data": inputs(data=json.loads("[" * 100 + "]" * 100)),
    "escapes without end": {"content": b'"' + b'\\"' * 50_000},
    "quotes": {"content": b'"' * 100_001},
    "header says more": {"content": b"{}", "headers": {SIZE: "3"}},
    "header is huge": {"content": b"{}", "headers": {SIZE: "9" * 400}},
    "header is negative": {"content": b"{}", "headers": {SIZE: "-1"}},
    "header cuts the JSON": {"content": json.dumps({"inputs": [TEXT]}).encode(), "headers": {SIZE: "5"}},
    "length of an element lies": binary([1], struct.pack("<I", 2**32 - 1) + b"abc"),
    "fewer elements": binary([3], struct.pack("<I", 1) + b"a"),
    "more elements": binary([1], (struct.pack("<I", 1) + b"a") * 2),
    "elements without bytes": binary([4], b"\0\0\0"),
    "a shape of 2^63": binary([2**63], b""),
    "a shape that overflows": binary([2**62, 2**62, 2**62], struct.pack("<I", 1) + b"a"),
    "not UTF-8": binary([1], struct.pack("<I", 2) + b"\xff\xfe"),
    "a surrogate": binary([1], struct.pack("<I", 3) + b"\xed\xa0\x80"),
    "too many elements": binary([5000], b"\0\0\0\0" * 5000),
    "floats for text": binary([1], b"\0\0\0\0", "FP32"),
    "pixels for text": binary([1, 1, 1, 3], b"\0\0\0", "UINT8", "image"),
    "many dimensions": inputs(shape=[1] * 100),
    "shape of a shape": inputs(shape=[[1]]),
    "a huge number as size": inputs(shape=[10**3000]),
    "numbers as text": inputs(data=[1, 2, 3]),
    "nulls as text": inputs(data=[None]),
    "an object as name": inputs(name={"a": "b"}),
    "a long name": inputs(name="x" * 50_000),
    "a long type": inputs(datatype="x" * 50_000),
    "a type that is a list": inputs(datatype=["BYTES"]),
    "the same tensor twice": as_json({"inputs": [TEXT, TEXT]}),
    "a thousand tensors": as_json({"inputs": [TEXT | {"name": str(n)} for n in range(1000)]}),
    "an infinite shape": {
        "content": b'{"inputs":[{"name":"text","datatype":"BYTES","shape":[1e308],"data":["a"]}]}'
    },
    "a negative shape": inputs(shape=[-1]),
    "a fraction as shape": inputs(shape=[1.0]),
    "true as shape": inputs(shape=[True]),
    "no bytes for one element": binary([1], b""),
    "no elements": binary([0], b""),
    "no elements in no bytes": binary([1, 0], b""),
    "bytes for no elements": binary([0], b"\0\0\0\0"),
    "a size that is negative": as_json({"inputs": [TEXT | {"parameters": {"binary_data_size": -4}}]}),
    "a size without bytes": as_json(
        {"inputs": [{**TEXT, "data": None, "parameters": {"binary_data_size": 4}}]}
    ),
    "shared memory": inputs(parameters={"shared_memory_region": "/dev/shm/x", "shared_memory_byte_size": 8}),
    "parameters that are a list": inputs(parameters=[]),
    "a lone surrogate as name": {
        "content": b'{"inputs":[{"name":"\\ud800","datatype":"BYTES","shape":[1],"data":["a"]}]}'
    },
    "an unknown output": as_json({"inputs": [TEXT], "outputs": [{"name": "embedding"}]}),
    "classes below nothing": as_json(
        {"inputs": [TEXT], "outputs": [{"name": "scores", "parameters": {"classification": -(2**70)}}]}
    ),
    "a timeout of ages": as_json({"inputs": [TEXT], "parameters": {"timeout": 10**4000}}),
    "a long text": inputs(data=["x" * 100_000]),
    "an endless gzip": {"content": gzip.compress(b"\0" * 5_000_000), "headers": {"Content-Encoding": "gzip"}},
    "half a gzip": {"content": gzip.compress(b"{}")[:10], "headers": {"Content-Encoding": "gzip"}},
    "no gzip": {"content": b"{}", "headers": {"Content-Encoding": "gzip"}},
    "another coding": {"content": b"{}", "headers": {"Content-Encoding": "br"}},
}

CLASSIFY: dict[str, dict[str, Any]] = {
    **{name: request for name, request in INFER.items() if SIZE not in request.get("headers", {})},
    "no inputs": as_json({"top_k": 1}),
    "empty inputs": as_json({"inputs": []}),
    "nested inputs": as_json({"inputs": [["a", "b"]]}),
    "many inputs": as_json({"inputs": ["a"] * 20_000}),
    "numbers": as_json({"inputs": [1] * 400}),
    "a huge top_k": as_json({"inputs": "a", "top_k": -(10**100)}),
    "many unknown keys": as_json({"inputs": "a"} | {f"key{n}": n for n in range(400)}),
    "a long unknown key": as_json({"inputs": "a", "k" * 100_000: 1}),
    "an empty key": as_json({"inputs": "a", "": 1}),
    "a form": {"files": {"file": b"x"}},
    "an image": {"content": b"PNG", "headers": {"Content-Type": "image/png"}},
    "a strange type": {"content": b"x", "headers": {"Content-Type": "image/" + "x" * 1000}},
}


OTHERS: dict[str, dict[str, Any]] = {
    **{name: request for name, request in INFER.items() if SIZE not in request.get("headers", {})},
    "no inputs": as_json({"model": "sst2"}),
    "empty inputs": as_json({"model": "sst2", "inputs": [], "input": []}),
    "an empty item": as_json({"model": "sst2", "inputs": [[]], "input": [[]]}),
    "three in a pair": as_json({"model": "sst2", "inputs": [["a", "b", "c"]], "input": [["a"]]}),
    "token ids": as_json({"model": "sst2", "inputs": [1, 2], "input": [1, 2]}),
    "many items": as_json({"model": "sst2", "inputs": [["a"]] * 20_000, "input": ["a"] * 20_000}),
    "a long text": as_json({"model": "sst2", "inputs": "x" * 100_000, "input": "x" * 100_000}),
    "a model that is a path": as_json({"model": "../../etc/passwd", "inputs": "a", "input": "a"}),
    "a model that is no string": as_json({"model": {"a": 1}, "inputs": "a", "input": "a"}),
}


def check_refused(response: httpx.Response) -> None:
    assert 400 <= response.status_code < 500, response.text
    assert set(response.json()) == {"error", "code"}
    assert 10 < len(response.json()["error"]) < 500


@pytest.mark.parametrize("name", INFER)
def test_infer_refuses(host: HostApp, call: Call, name: str) -> None:
    check_refused(call(host, "POST", "/v2/models/sst2/infer", **INFER[name]))
    good = json.dumps({"inputs": [TEXT]}).encode()
    assert call(host, "POST", "/v2/models/sst2/infer", content=good).status_code == 200


@pytest.mark.parametrize("name", CLASSIFY)
def test_classify_refuses(host: HostApp, gateway: GatewayApp, call: Call, name: str) -> None:
    check_refused(call(host, "POST", "/v2/models/sst2/classify", **CLASSIFY[name]))
    check_refused(call(gateway, "POST", "/classify", **CLASSIFY[name]))
    assert call(host, "POST", "/v2/models/sst2/classify", content=b'{"inputs":"a"}').status_code == 200


@pytest.mark.parametrize("name", OTHERS)
def test_the_other_protocols_refuse_in_their_own_words(gateway: GatewayApp, call: Call, name: str) -> None:
    tei = call(gateway, "POST", "/predict", **OTHERS[name])
    vllm = call(gateway, "POST", "/v1/classify", **OTHERS[name])
    for response in (tei, vllm):
        assert 400 <= response.status_code < 500, response.text
    assert set(tei.json()) == {"error", "code", "error_type"}
    assert vllm.json()["error"]["code"] == vllm.status_code
    assert 10 < len(vllm.json()["error"]["message"]) <= 1000


@pytest.mark.parametrize(
    "body",
    [
        b'{"inputs":"a","inputs":"b"}',
        b'{"inputs":["a"],"top_k":1,"top_k":2}',
        b'{"model":"x","model":"sst2","inputs":"a"}',
    ],
)
def test_a_key_given_twice_does_no_harm(host: HostApp, gateway: GatewayApp, call: Call, body: bytes) -> None:
    """JSON leaves open which counts; one of them does, in all of our parsers."""
    for app, path in ((host, "/v2/models/sst2/classify"), (gateway, "/classify"), (gateway, "/predict")):
        assert call(app, "POST", path, content=body).status_code in (200, 400)


@pytest.mark.parametrize("number", ["1e308", "1e309", "-1e999", "9" * 400, "1e-400", "NaN", "Infinity"])
def test_numbers_beyond_every_type(host: HostApp, call: Call, number: str) -> None:
    shape = b'{"inputs":[{"name":"pixel_values","datatype":"FP32","shape":[3,1,1],"data":[%s,0,0]}]}'
    response = call(host, "POST", "/v2/models/cifar/infer", content=shape % number.encode())
    assert response.status_code < 500
    assert (response.status_code == 200) == (number == "1e-400"), "what rounds to zero is a number"
    top_k = b'{"inputs":"a","top_k":%s}' % number.encode()
    assert call(host, "POST", "/v2/models/sst2/classify", content=top_k).status_code in (200, 400)


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/" + "x" * 10_000,
        "/v2/models/%00",
        "/v2/models/..%2f..%2fetc%2fpasswd",
        "/v2/models/sst2/versions/" + "9" * 5000,
        "/v2/models//sst2",
        "/v2/models/sst2//infer",
        "/v2/models/%F0%9F%92%A5/ready",
        "/v2/models/%FF%FE",
    ],
)
def test_strange_paths_are_404(host: HostApp, gateway: GatewayApp, call: Call, path: str) -> None:
    for app in (host, gateway):
        response = call(app, "GET", path)
        has_no_host = app is gateway and path.startswith("/v2/models/sst2/versions/")
        assert response.status_code == (503 if has_no_host else 404)
        assert len(response.json()["error"]) <= 1000


@given(
    path=st.sampled_from(["/v2/models/sst2/infer", "/v2/models/cifar/infer", "/v2/models/sst2/classify"]),
    body=st.binary(max_size=200) | st.just(b'{"inputs":"a"}'),
    headers=st.dictionaries(
        st.sampled_from(
            [
                SIZE,
                "Content-Encoding",
                "Content-Type",
                "Accept-Encoding",
                "Content-Length",
                "X-Request-Timeout-Ms",
                "X-Request-Id",
                "X-Request-Priority",
                "X-Forwarded-For",
                "traceparent",
                "Authorization",
            ]
        ),
        st.sampled_from(["0", "5", "gzip", "deflate", "image/png", "*;q=0", ";", "1e9"])
        | st.text("a0;,=/ ", max_size=9),
        max_size=4,
    ),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
def test_no_headers_and_bytes_give_5xx(
    host: HostApp, call: Call, path: str, body: bytes, headers: dict[str, str]
) -> None:
    response = call(host, "POST", path, content=body, headers=headers)
    assert response.status_code < 500
    assert response.status_code == 200 or response.json()["error"]
