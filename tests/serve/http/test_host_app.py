"""The host's application over ASGI: every endpoint, every error, limits, compression, counting."""

import asyncio
import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest

from fewshard_core.values import EncodedImage, PixelArray, TextInput
from fewshard_serve.core import Caller
from fewshard_serve.http.host import HostApp
from fewshard_serve.http.large_bodies import LARGE_BYTES, LargeBodies
from fewshard_serve.protocol.classify import ClassifyResponse
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.schemas import InferRequestBody, InferResponseBody, ModelMetadata
from local_service import LocalService

Call = Callable[..., httpx.Response]
Model = Any
Counted = list[tuple[str, str, str]]

CLASSIFY, INFER = "/v2/models/sst2/classify", "/v2/models/sst2/infer"


def infer_body(*texts: str, **more: Any) -> dict[str, Any]:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [len(texts)], "data": list(texts)}
    return {"inputs": [tensor], **more}


def test_numbers_for_a_text_model_are_refused_before_they_are_parsed(
    host: HostApp, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "fewshard_serve.protocol.json_guard.from_json", lambda *_, **__: pytest.fail("parsed")
    )
    tensor = {"name": "text", "datatype": "FP32", "shape": [40_000], "data": [0] * 40_000}
    answer = call(host, "POST", INFER, json={"inputs": [tensor]})
    assert answer.status_code == 413
    assert "values; split the request" in answer.json()["error"]


def test_a_large_body_counts_until_it_is_answered_and_no_longer(
    text_model: Model, call: Call, raised: dict[str, Exception]
) -> None:
    limits = Limits(max_body_bytes=4 * LARGE_BYTES, max_text_bytes=4 * LARGE_BYTES)
    bodies = LargeBodies(limits)
    counted = []

    async def classify(request: Any) -> Any:
        counted.append(bodies.budget.used)
        raise raised["broken"]

    text_model.classify = classify
    host = HostApp(LocalService({"sst2": text_model}), limits=limits, bodies=bodies)
    assert call(host, "POST", CLASSIFY, json={"inputs": "x" * 2 * LARGE_BYTES}).status_code == 500
    assert 2 * LARGE_BYTES < counted[0] < 3 * LARGE_BYTES
    assert bodies.budget.used == 0
    bodies.budget.add(16 * LARGE_BYTES, Caller("other"))
    full = call(host, "POST", CLASSIFY, json={"inputs": "x" * 2 * LARGE_BYTES})
    assert (full.status_code, full.headers["retry-after"]) == (429, "1")
    assert call(host, "POST", CLASSIFY, json={"inputs": "x"}).status_code == 500


def test_classify_answers_each_item_best_first(host: HostApp, call: Call, text_model: Model) -> None:
    response = call(host, "POST", CLASSIFY, json={"inputs": ["a", "abc"], "top_k": 1, "truncate": False})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert int(response.headers["content-length"]) == len(response.content)
    answer = ClassifyResponse.model_validate_json(response.content, strict=True)
    assert [[best.label for best in item] for item in answer.predictions] == [["negative"], ["negative"]]
    assert answer.predictions[1][0].score == pytest.approx(1 / (1 + np.exp(-3)), rel=1e-5)
    assert answer.usage.model_dump() == {"items": 2, "tokens": 10}
    assert answer.timings_ms.model_dump() == {"queue": 2.0, "preprocess": 1.0, "infer": 3.0}
    assert text_model.calls == [
        {"inputs": [TextInput("a"), TextInput("abc")], "truncate": False, "timeout_s": None}
    ]


@pytest.mark.parametrize("root_path", ["", "/v2/models", "/v2/models/sst2"])
def test_the_mount_point_may_be_any_prefix(host: HostApp, call: Call, root_path: str) -> None:
    whole = call(host, "POST", CLASSIFY, root_path=root_path, json={"inputs": "a"})
    stripped = call(host, "POST", CLASSIFY.removeprefix(root_path), root_path=root_path, json={"inputs": "a"})
    assert whole.status_code == stripped.status_code == 200


@pytest.mark.parametrize(
    "content_type", [None, "application/json", "application/x-www-form-urlencoded", "text/plain"]
)
def test_json_needs_no_content_type(host: HostApp, call: Call, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    assert call(host, "POST", CLASSIFY, content=b'{"inputs":"a"}', headers=headers).status_code == 200


def test_an_image_may_be_the_body(host: HostApp, call: Call, image_model: Model) -> None:
    response = call(
        host,
        "POST",
        "/v2/models/cifar/classify?top_k=2&raw_scores=true",
        content=b"PNG",
        headers={"Content-Type": "image/png"},
    )
    assert response.status_code == 200
    assert [each["score"] for each in response.json()["predictions"][0]] == [0.0, 0.0]
    assert image_model.calls[0]["inputs"] == [EncodedImage(b"PNG")]


def test_bodies_of_the_wrong_kind_are_unsupported(host: HostApp, call: Call) -> None:
    image = call(host, "POST", CLASSIFY, content=b"PNG", headers={"Content-Type": "Image/PNG"})
    form = call(host, "POST", CLASSIFY, files={"file": b"PNG"})
    coded = call(host, "POST", CLASSIFY, content=b"x", headers={"Content-Encoding": "br"})
    for response in (image, form, coded):
        assert (response.status_code, response.json()["code"]) == (415, "unsupported_media")


@pytest.mark.parametrize("query", ["top_k=0", "top_k=x", "raw_scores=maybe", "topk=1", "model=m"])
def test_a_query_with_mistakes_is_malformed(host: HostApp, call: Call, query: str) -> None:
    response = call(
        host,
        "POST",
        f"/v2/models/cifar/classify?{query}",
        content=b"PNG",
        headers={"Content-Type": "image/png"},
    )
    assert (response.status_code, response.json()["code"]) == (400, "malformed")


def test_infer_in_json(host: HostApp, call: Call) -> None:
    body = infer_body("abc", "", id="req-1", outputs=[{"name": "label"}, {"name": "logits"}])
    InferRequestBody.model_validate(body)
    response = call(host, "POST", INFER, json=body)
    assert response.status_code == 200
    assert "inference-header-content-length" not in response.headers
    InferResponseBody.model_validate_json(response.content)
    answer = response.json()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("req-1", "sst2", "1")
    assert answer["parameters"] == {"tokens": 10, "queue_ms": 2.0, "preprocess_ms": 1.0, "infer_ms": 3.0}
    assert answer["outputs"] == [
        {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["negative", "negative"]},
        {"name": "logits", "datatype": "FP32", "shape": [2, 2], "data": [3.0, 0.0, 0.0, 0.0]},
    ]


def test_infer_in_binary(host: HostApp, call: Call, image_model: Model) -> None:
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8)
    head = json.dumps(
        {
            "parameters": {"binary_data_output": True},
            "inputs": [
                {
                    "name": "image",
                    "datatype": "UINT8",
                    "shape": [2, 4, 4, 3],
                    "parameters": {"binary_data_size": 96},
                }
            ],
            "outputs": [{"name": "scores"}],
        }
    ).encode()
    response = call(
        host,
        "POST",
        "/v2/models/cifar/versions/1/infer",
        content=head + pixels.tobytes(),
        headers={"Inference-Header-Content-Length": str(len(head))},
    )
    assert response.status_code == 200
    size = int(response.headers["inference-header-content-length"])
    assert json.loads(response.content[:size])["outputs"][0]["parameters"] == {"binary_data_size": 24}
    np.testing.assert_allclose(np.frombuffer(response.content[size:], "<f4"), 1 / 3, rtol=1e-6)
    (first, _) = image_model.calls[0]["inputs"]
    assert isinstance(first, PixelArray)
    assert np.array_equal(first.pixels.ravel(), pixels[:48])


def test_infer_of_one_raw_item(host: HostApp, call: Call, text_model: Model) -> None:
    response = call(
        host, "POST", INFER, content="grün".encode(), headers={"Inference-Header-Content-Length": "0"}
    )
    assert response.status_code == 200
    assert text_model.calls[0]["inputs"] == [TextInput("grün")]
    size = int(response.headers["inference-header-content-length"])
    assert len(response.content) == size + 8 + 8 + 4 + len("negative")


def test_deadlines_come_from_header_and_parameter(host: HostApp, call: Call, text_model: Model) -> None:
    call(host, "POST", CLASSIFY, json={"inputs": "a"}, headers={"X-Request-Timeout-Ms": "1500"})
    call(host, "POST", INFER, json=infer_body("a", parameters={"timeout": 700_000}))
    both = {
        "json": infer_body("a", parameters={"timeout": 700_000}),
        "headers": {"X-Request-Timeout-Ms": "300"},
    }
    call(host, "POST", INFER, **both)
    assert [each["timeout_s"] for each in text_model.calls] == [
        pytest.approx(1.5, abs=0.2),
        pytest.approx(0.7, abs=0.2),
        pytest.approx(0.3, abs=0.2),
    ]
    late = call(host, "POST", INFER, json=infer_body("a", parameters={"timeout": 1}))
    assert (late.status_code, late.json()["code"]) == (408, "deadline_exceeded")
    wrong = call(host, "POST", CLASSIFY, json={"inputs": "a"}, headers={"X-Request-Timeout-Ms": "soon"})
    assert (wrong.status_code, wrong.json()["code"]) == (400, "malformed")


@pytest.mark.parametrize(
    ("text", "status", "code"),
    [
        ("overloaded", 429, "overloaded"),
        ("overloaded a little", 429, "overloaded"),
        ("late", 408, "deadline_exceeded"),
        ("unusable", 422, "unusable_item"),
        ("draining", 503, "not_ready"),
        ("broken", 500, "internal"),
        ("bug", 500, "internal"),
        ("config", 500, "bad_config"),
        ("unauthorized", 401, "unauthorized"),
        ("forbidden", 403, "forbidden"),
        ("gone", 499, "caller_gone"),
        ("malformed", 400, "malformed"),
        ("unknown", 404, "unknown_model"),
        ("nan", 500, "internal"),
    ],
)
def test_every_failure_is_json_and_counted(
    host: HostApp, call: Call, counted_requests: Counted, text_model: Model, text: str, status: int, code: str
) -> None:
    for path, body in ((CLASSIFY, {"inputs": text}), (INFER, infer_body(text))):
        response = call(host, "POST", path, json=body)
        assert response.status_code == status
        assert set(response.json()) == {"error", "code"}
        assert response.json()["code"] == code
        assert "secret detail" not in response.text
    assert counted_requests == [("sst2", "classify", code), ("sst2", "v2_json", code)]
    assert text_model.stats.requests["fail"].count == 2
    assert text_model.stats.requests["success"].count == 0


def test_overload_says_when_to_come_back(host: HostApp, call: Call) -> None:
    assert call(host, "POST", CLASSIFY, json={"inputs": "overloaded"}).headers["retry-after"] == "2"
    assert call(host, "POST", CLASSIFY, json={"inputs": "overloaded a little"}).headers["retry-after"] == "1"


def test_a_bug_is_logged_with_its_traceback(
    host: HostApp, call: Call, caplog: pytest.LogCaptureFixture
) -> None:
    call(host, "POST", CLASSIFY, json={"inputs": "bug"})
    (record,) = caplog.records
    assert "POST '/v2/models/sst2/classify' failed" in record.message
    assert "secret detail" in caplog.text


def test_unknown_models_versions_and_paths_are_404(
    host: HostApp, call: Call, counted_requests: Counted
) -> None:
    unknown = call(host, "POST", "/v2/models/nope/classify", json={"inputs": "a"})
    assert unknown.status_code == 404
    assert unknown.json() == {
        "error": "no model named 'nope' is served here; there are: cifar, sst2",
        "code": "unknown_model",
    }
    assert counted_requests == [("unknown", "classify", "unknown_model")]
    version = call(host, "GET", "/v2/models/sst2/versions/2/ready")
    assert (version.status_code, version.json()["code"]) == (404, "not_found")
    action = call(host, "GET", "/v2/models/sst2/weights")
    assert (action.status_code, action.json()["code"]) == (404, "not_found")
    assert "GET /docs" in action.json()["error"]
    assert call(host, "GET", "/v2/models").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", CLASSIFY, "POST"),
        ("PUT", INFER, "POST"),
        ("PUT", "/v2/models/sst2", "GET, HEAD, POST"),
        ("POST", "/v2/models/sst2/config", "GET, HEAD"),
        ("DELETE", "/v2/models/sst2/ready", "GET, HEAD"),
        ("POST", "/v2/models/stats", "GET, HEAD"),
        ("OPTIONS", CLASSIFY, "POST"),
    ],
)
def test_other_methods_are_405_with_allow(
    host: HostApp, call: Call, counted_requests: Counted, method: str, path: str, allowed: str
) -> None:
    response = call(host, method, path)
    assert (response.status_code, response.headers["allow"]) == (405, allowed)
    assert response.json()["code"] == "method_not_allowed"
    assert counted_requests == []


def test_head_has_the_headers_alone(host: HostApp, call: Call) -> None:
    head, whole = (call(host, method, "/v2/models/sst2") for method in ("HEAD", "GET"))
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == whole.headers["content-length"]


def test_metadata_ready_and_config(host: HostApp, call: Call) -> None:
    metadata = call(host, "GET", "/v2/models/sst2")
    ModelMetadata.model_validate_json(metadata.content)
    assert metadata.json() == call(host, "GET", "/v2/models/sst2/versions/1").json()
    assert call(host, "GET", "/v2/models/sst2/ready").json() == {"name": "sst2", "ready": True}
    config = call(host, "GET", "/v2/models/sst2/config").json()
    assert config["labels"] == ["negative", "positive"]
    assert config["card"]["accuracy"] == 0.914
    assert config["limits"]["max_items"] == 64
    assert [tensor["name"] for tensor in config["inputs"]] == ["text", "text_pair"]


def test_a_model_that_is_not_ready_says_why(
    host: HostApp, call: Call, text_model: Model, counted_requests: Counted
) -> None:
    text_model.not_ready_reason = "reading weights"
    ready = call(host, "GET", "/v2/models/sst2/ready")
    assert ready.status_code == 503
    assert ready.json() == {
        "error": "sst2 is not ready: reading weights",
        "code": "not_ready",
        "name": "sst2",
        "ready": False,
    }
    assert call(host, "POST", CLASSIFY, json={"inputs": "a"}).status_code == 503
    assert call(host, "GET", "/v2/models/sst2").status_code == 200
    assert text_model.calls == []
    assert counted_requests == [("sst2", "classify", "not_ready")]


def test_statistics_count_what_was_asked(host: HostApp, call: Call) -> None:
    call(host, "POST", CLASSIFY, json={"inputs": "a"})
    call(host, "POST", INFER, json=infer_body("a"))
    call(host, "POST", CLASSIFY, json={"inputs": 1})
    answer = call(host, "GET", "/v2/models/sst2/stats").json()
    assert answer["replicas"] == 1
    (entry,) = answer["model_stats"]
    assert entry["inference_stats"]["success"]["count"] == 2
    assert entry["inference_stats"]["success"]["ns"] > 0
    assert entry["inference_stats"]["queue"] == {"count": 2, "ns": 4_000_000}
    assert entry["inference_stats"]["compute_output"]["ns"] > 0
    assert entry["inference_stats"]["fail"]["count"] == 1
    together = call(host, "GET", "/v2/models/stats").json()
    assert [each["name"] for each in together["model_stats"]] == ["sst2", "cifar"]
    assert together["model_stats"][0] == entry


def test_statistics_of_no_models() -> None:
    app = HostApp(LocalService({}))

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://s") as client:
            return await client.get("/v2/models/stats")

    assert asyncio.run(ask()).json() == {"model_stats": [], "replicas": 1}


def test_experts_where_there_are_some(host: HostApp, call: Call, text_model: Model) -> None:
    dense = call(host, "GET", "/v2/models/sst2/experts")
    assert (dense.status_code, dense.json()["code"]) == (404, "not_found")
    text_model.routing = {"model": "sst2", "layers": [[3, 1]]}
    assert call(host, "GET", "/v2/models/sst2/experts").json() == {
        "model": "sst2",
        "layers": [[3, 1]],
        "replicas": 1,
    }


@pytest.mark.parametrize("path", ["/v2/models/metrics", "/v2/models/sst2/metrics"])
def test_metrics_of_this_replica(host: HostApp, call: Call, path: str) -> None:
    response = call(host, "GET", path)
    assert response.text == "fewshard_queue_items 1\n"
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"


def test_outcomes_are_counted_once_by_protocol(host: HostApp, call: Call, counted_requests: Counted) -> None:
    call(host, "POST", CLASSIFY, json={"inputs": "a"})
    call(host, "POST", INFER, json=infer_body("a"))
    call(host, "POST", INFER, content=b"a", headers={"Inference-Header-Content-Length": "0"})
    call(host, "POST", INFER, content=b"a", headers={"Inference-Header-Content-Length": "x"})
    call(host, "POST", INFER, content=b"{")
    call(host, "GET", "/v2/models/sst2/stats")
    assert counted_requests == [
        ("sst2", "classify", "ok"),
        ("sst2", "v2_json", "ok"),
        ("sst2", "v2_binary", "ok"),
        ("sst2", "v2_binary", "malformed"),
        ("sst2", "v2_json", "malformed"),
    ]


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"inputs": []}, 400, "at least one"),
        ({"inputs": ["a"] * 65}, 413, "max_items"),
        ({"inputs": ["a"] * 5000}, 413, "values"),
        ({"inputs": "a" * 10_001}, 413, "max_text_bytes"),
        ({"inputs": "a" * 300_000}, 413, "max_body_bytes"),
        ({"inputs": json.loads("[" * 40 + "]" * 40)}, 413, "max_json_depth"),
        ({"inputs": ""}, 200, ""),
        ({"inputs": "a" * 10_000}, 200, ""),
        ({"inputs": ["a"] * 64}, 200, ""),
    ],
)
def test_limits(host: HostApp, call: Call, body: object, status: int, word: str) -> None:
    response = call(host, "POST", CLASSIFY, json=body)
    assert response.status_code == status
    assert word in response.text


def test_a_refused_body_closes_the_connection(host: HostApp, call: Call) -> None:
    response = call(host, "POST", CLASSIFY, content=b"x" * 300_000)
    assert (response.status_code, response.headers["connection"]) == (413, "close")
    assert "connection" not in call(host, "POST", CLASSIFY, json={"inputs": "a"}).headers


@pytest.mark.parametrize(("coding", "packed"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_requests_may_be_packed(
    host: HostApp, call: Call, coding: str, packed: Callable[[bytes], bytes]
) -> None:
    body = packed(b'{"inputs":"a"}')
    assert call(host, "POST", CLASSIFY, content=body, headers={"Content-Encoding": coding}).status_code == 200
    bomb = packed(b"\0" * 3_000_000)
    refused = call(host, "POST", CLASSIFY, content=bomb, headers={"Content-Encoding": coding})
    assert (refused.status_code, refused.json()["code"]) == (413, "too_large")


def test_answers_are_packed_as_the_client_asks(host: HostApp, call: Call) -> None:
    small, large = {"inputs": "a"}, {"inputs": ["a"] * 64}

    def coding(accepted: str, body: object) -> str | None:
        response = call(host, "POST", CLASSIFY, json=body, headers={"Accept-Encoding": accepted})
        assert response.json()["model"] == "sst2"  # httpx unpacks it
        return response.headers.get("content-encoding")

    assert coding("gzip", small) == "gzip"
    assert coding("deflate", small) == "deflate"
    assert coding("gzip, deflate", small) is None
    assert coding("gzip, deflate", large) == "gzip"
    assert coding("br", large) is None


def test_a_packed_answer_varies_and_an_error_is_never_packed(
    host: HostApp, call: Call, text_model: Model
) -> None:
    good = call(host, "GET", "/v2/models/sst2", headers={"Accept-Encoding": "gzip"})
    assert good.headers["vary"] == "accept-encoding"
    bad = call(host, "GET", "/v2/models/nope", headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in bad.headers
    text_model.not_ready_reason = "draining"
    waiting = call(host, "GET", "/v2/models/sst2/ready", headers={"Accept-Encoding": "gzip"})
    assert waiting.status_code == 503
    assert "content-encoding" not in waiting.headers


def test_an_explanation_asks_for_the_text_without_each_word(
    host: HostApp, call: Call, text_model: Model, counted_requests: Counted
) -> None:
    answer = call(host, "POST", "/v2/models/sst2/explain", json={"inputs": "a fine film"})
    assert answer.status_code == 200
    assert [one.text for one in text_model.calls[-1]["inputs"]] == [
        "a fine film",
        "fine film",
        "a film",
        "a fine",
    ]
    words = {each["word"]: each["effect"] for each in answer.json()["words"]}
    assert words == {"a": 2.0, "fine": 5.0, "film": 5.0}, "the first logit is the text's length"
    assert text_model.callers[-1].is_probing
    assert counted_requests == [("sst2", "explain", "ok")]
    refused = call(host, "POST", "/v2/models/cifar/explain", json={"inputs": "a"})
    assert refused.status_code == 415
