"""tritonclient.grpc and bare messages against the service on a port of this machine."""

import time

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from fewshard_core.values import EncodedImage
from fewshard_serve.auth import hash_of
from fewshard_serve.core import Caller
from fewshard_serve.errors import (
    StartError,
)
from fewshard_serve.http.callers import CallersSettings
from fewshard_serve.http.middleware import AccessMiddleware, AccessSettings
from fewshard_serve.rpc.inference import GRPC_STATUS, InferenceService, status_of
from fewshard_serve.rpc.server import start
from rpc_service import LIMITS, Running, stub, text_input


def test_health(client):
    assert client.is_server_live()
    assert not client.is_server_ready()
    assert client.is_model_ready("text")
    assert client.is_model_ready("text", "1")
    assert not client.is_model_ready("slow")


def test_metadata(client):
    assert client.get_server_metadata().name == "fewshard"
    metadata = client.get_model_metadata("image", as_json=True)
    assert metadata["inputs"][0] == {"name": "image", "datatype": "UINT8", "shape": ["-1", "-1", "-1", "3"]}
    assert [output["name"] for output in metadata["outputs"]] == ["scores", "logits", "label"]


def test_texts(running, client):
    outputs = [triton.InferRequestedOutput(name) for name in ("logits", "label")]
    result = client.infer("text", [text_input("abc", "é" * 3)], outputs=outputs, request_id="r1")
    assert result.as_numpy("logits").tolist() == [[3, 0], [3, 0]]
    assert result.as_numpy("label").tolist() == [b"long", b"long"]
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("r1", "text", "1")
    assert response.parameters["tokens"].int64_param == 10
    assert response.parameters["infer_ms"].double_param == 3.0
    assert running.counted == [("text", "v2_grpc", "ok")]


def test_all_outputs_where_none_is_named(client):
    result = client.infer("text", [text_input("abc", shape=[1, 1])])
    assert {output.name for output in result.get_response().outputs} == {"scores", "logits", "label"}
    assert result.as_numpy("scores").sum() == pytest.approx(1)


def test_classification_extension(client):
    outputs = [triton.InferRequestedOutput("logits", class_count=1)]
    assert client.infer("text", [text_input("abc")], outputs=outputs).as_numpy("logits").tolist() == [
        [b"3.000000:0:long"]
    ]


def test_images(running, client):
    pixels = triton.InferInput("image", [2, 4, 4, 3], "UINT8")
    pixels.set_data_from_numpy(np.zeros((2, 4, 4, 3), np.uint8))
    client.infer("image", [pixels])
    files = triton.InferInput("image", [1], "BYTES")
    files.set_data_from_numpy(np.array([b"PNG\x00"], dtype=object))
    client.infer("image", [files])
    assert running.service.calls[0][1][0].pixels.shape == (4, 4, 3)
    assert running.service.calls[1][1] == [EncodedImage(b"PNG\x00", LIMITS.max_image_pixels)]


def test_compressed(client):
    compressed = client.infer("text", [text_input("abc")], compression_algorithm="gzip")
    assert compressed.as_numpy("logits").tolist() == [[3, 0]]


def test_the_shorter_deadline_and_the_options_arrive(running, client):
    client.infer("text", [text_input("a")], timeout=2_000_000, parameters={"truncate": False})
    client.infer("text", [text_input("a")], timeout=60_000_000, client_timeout=5)
    client.infer("text", [text_input("a")])
    (_, _, truncate, asked_s, _), (_, _, _, own_s, _), (_, _, _, none, _) = running.service.calls
    assert (truncate, asked_s, none) == (False, 2.0, None)
    assert 3 < own_s < 5.5


@pytest.mark.parametrize(
    ("text", "status", "outcome"),
    [
        ("overloaded", "RESOURCE_EXHAUSTED", "overloaded"),
        ("late", "DEADLINE_EXCEEDED", "deadline_exceeded"),
        ("unusable", "INVALID_ARGUMENT", "unusable_item"),
        ("draining", "UNAVAILABLE", "not_ready"),
        ("broken", "INTERNAL", "internal"),
        ("large", "INVALID_ARGUMENT", "too_large"),
        ("bug", "INTERNAL", "internal"),
        ("nan", "INTERNAL", "internal"),
    ],
)
def test_errors_have_their_status(running, client, text, status, outcome):
    with pytest.raises(InferenceServerException) as refusal:
        client.infer("text", [text_input(text)])
    assert refusal.value.status() == f"StatusCode.{status}"
    assert "secret" not in str(refusal.value)
    assert running.counted == [("text", "v2_grpc", outcome)]


@pytest.mark.parametrize(
    ("model", "version", "status", "words"),
    [
        ("nobody", "", "NOT_FOUND", "there are: image, slow, text"),
        ("text", "7", "NOT_FOUND", "no version '7'"),
        ("slow", "", "UNAVAILABLE", "reading weights"),
        ("../text", "", "NOT_FOUND", "there are"),
        ("image", "", "INVALID_ARGUMENT", "takes no input 'text'"),
    ],
)
def test_models_that_do_not_answer(client, model, version, status, words):
    with pytest.raises(InferenceServerException, match=words) as refusal:
        client.infer(model, [text_input("a")], model_version=version)
    assert refusal.value.status() == f"StatusCode.{status}"


def request(**changed):
    message = service_pb2.ModelInferRequest(model_name="text")
    message.inputs.add(name="text", datatype="BYTES", shape=[2]).contents.bytes_contents.extend(
        [b"abc", b"de"]
    )
    for key, value in changed.items():
        setattr(message.inputs[0], key, value)
    return message


def test_typed_contents_are_answered_typed(running):
    message = request()
    message.outputs.add(name="logits")
    message.outputs.add(name="label")
    answer = stub(running).ModelInfer(message)
    assert not answer.raw_output_contents
    assert list(answer.outputs[0].contents.fp32_contents) == [3, 0, 2, 0]
    assert list(answer.outputs[1].contents.bytes_contents) == [b"long", b"long"]


def broken_requests():
    both = request()
    both.raw_input_contents.append(b"\x01\x00\x00\x00a")
    yield "contents beside raw", both
    fewer = service_pb2.ModelInferRequest(model_name="text", raw_input_contents=[b"", b""])
    fewer.inputs.add(name="text", datatype="BYTES", shape=[0])
    yield "more raw than inputs", fewer
    negative = request()
    negative.inputs[0].shape[0] = -2
    yield "a negative shape", negative
    lying = request()
    lying.inputs[0].shape[0] = 3
    yield "a shape that lies", lying
    huge = request()
    huge.inputs[0].shape[:] = [2**62, 2**62]
    yield "a huge shape", huge
    yield "an unknown datatype", request(datatype="BYTE")
    yield "half floats that are not raw", request(datatype="FP16")
    yield "numbers where bytes are told", request(datatype="INT32")
    yield "no inputs", service_pb2.ModelInferRequest(model_name="text")
    twice = request()
    twice.inputs.add().CopyFrom(twice.inputs[0])
    yield "a name twice", twice
    odd = request()
    odd.parameters["timeout"].string_param = "soon"
    yield "an odd timeout", odd
    typo = request()
    typo.parameters["truncat"].bool_param = False
    yield "a parameter that is none", typo
    shared = service_pb2.ModelInferRequest(model_name="text")
    entry = shared.inputs.add(name="text", datatype="BYTES", shape=[1])
    entry.parameters["shared_memory_region"].string_param = "r"
    yield "shared memory", shared
    cut = service_pb2.ModelInferRequest(model_name="text", raw_input_contents=[b"\xff\xff\xff\xffa"])
    cut.inputs.add(name="text", datatype="BYTES", shape=[1])
    yield "a length that lies", cut
    yield (
        "no text",
        service_pb2.ModelInferRequest(model_name="text", inputs=[{"name": "x", "datatype": "BYTES"}]),
    )
    missing = request()
    missing.outputs.add(name="nothing")
    yield "an output there is not", missing
    empty = service_pb2.ModelInferRequest(model_name="text")
    empty.inputs.add(name="text", datatype="BYTES", shape=[0])
    yield "no items", empty


@pytest.mark.parametrize(
    ("name", "message"), [*broken_requests()], ids=lambda value: value if isinstance(value, str) else ""
)
def test_nasty_messages_are_the_callers_fault(running, name, message):
    with pytest.raises(grpc.RpcError) as refusal:
        stub(running).ModelInfer(message)
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert dict(refusal.value.trailing_metadata())["code"] == "malformed"
    assert stub(running).ModelInfer(request()).model_name == "text"


def test_absent_values_are_none(running):
    """MLServer's client leaves `contents` empty beside raw data, and others leave a parameter's value out."""
    message = service_pb2.ModelInferRequest(model_name="text", raw_input_contents=[b"\x03\0\0\0abc"])
    message.inputs.add(name="text", datatype="BYTES", shape=[1]).contents.SetInParent()
    message.parameters["truncate"].SetInParent()
    message.outputs.add(name="logits")
    answer = stub(running).ModelInfer(message)
    assert answer.raw_output_contents[0] == np.array([3, 0], np.float32).tobytes()


def test_a_message_over_the_limit_is_refused(running):
    with pytest.raises(grpc.RpcError) as refusal:
        stub(running).ModelInfer(service_pb2.ModelInferRequest(model_name="x" * 200_000))
    assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_refusal_says_when_to_come_back(running):
    message = request()
    message.inputs[0].contents.bytes_contents[0] = b"overloaded"
    with pytest.raises(grpc.RpcError) as refusal:
        stub(running).ModelInfer(message)
    assert dict(refusal.value.trailing_metadata()) == {"code": "overloaded", "retry-after": "1.250"}


def test_the_work_of_a_caller_that_leaves_is_cancelled(running):
    message = request()
    message.inputs[0].contents.bytes_contents[0] = b"hang"
    call = stub(running).ModelInfer.future(message)
    give_up_at = time.monotonic() + 5
    while not running.service.calls:
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
    call.cancel()
    assert running.service.was_cancelled.wait(5)
    while not running.counted:
        assert time.monotonic() < give_up_at
        time.sleep(0.01)
    assert running.counted == [("text", "v2_grpc", "caller_gone")]


def test_request_ids_come_back(running):
    _, call = stub(running).ModelInfer.with_call(request(), metadata=(("x-request-id", "mine"),))
    assert dict(call.initial_metadata())["x-request-id"] == "mine"


@pytest.fixture
def guarded(tmp_path):
    path = tmp_path / "tokens.yaml"
    scopes = {"reader-secret": "", "app-secret": "predict"}
    lines = [f"  - {{name: {t[:3]}, sha256: {hash_of(t).hex()}, scopes: [{s}]}}" for t, s in scopes.items()]
    path.write_text("\n".join(["tokens:", *lines]))
    one = Running(AccessMiddleware(AccessSettings(tokens_file=str(path))))
    yield one
    one.close()


def test_tokens(guarded):
    with triton.InferenceServerClient(guarded.address) as client:
        assert client.is_server_live()
        assert client.is_model_ready("text", headers={"authorization": "Bearer reader-secret"})
        for model in ("text", "nobody"):
            with pytest.raises(InferenceServerException) as refusal:
                client.is_model_ready(model)
            assert refusal.value.status() == "StatusCode.UNAUTHENTICATED"
        for headers, status in (
            (None, "UNAUTHENTICATED"),
            ({"authorization": "Bearer wrong"}, "UNAUTHENTICATED"),
            ({"authorization": "Bearer reader-secret"}, "PERMISSION_DENIED"),
            ({"authorization": "Bearer app-secret", "x-request-priority": "high"}, "PERMISSION_DENIED"),
        ):
            with pytest.raises(InferenceServerException) as refusal:
                client.infer("text", [text_input("a")], headers=headers)
            assert refusal.value.status() == f"StatusCode.{status}"
        assert (
            client.get_model_metadata("text", headers={"authorization": "Bearer reader-secret"}).name
            == "text"
        )
        client.infer("text", [text_input("a")], headers={"authorization": "Bearer app-secret"})
    assert [call[4] for call in guarded.service.calls] == [Caller("app")]


def test_without_tokens_the_caller_is_an_address(running, client):
    client.infer("text", [text_input("a")])
    assert running.service.calls[0][4] == Caller("127.0.0.1")


def test_a_trusted_proxy_says_who_the_caller_is():
    callers = CallersSettings(trusted_proxies=("127.0.0.0/8",))
    one = Running(AccessMiddleware(AccessSettings(callers=callers)))
    with triton.InferenceServerClient(one.address) as client:
        client.infer("text", [text_input("a")], headers={"x-forwarded-for": "6.6.6.6, 203.0.113.9"})
        client.infer("text", [text_input("a")])
    assert [call[4] for call in one.service.calls] == [Caller("203.0.113.9"), Caller("127.0.0.1")]
    one.close()


def test_a_taken_port_is_not_shared(running):
    with pytest.raises(StartError, match="--grpc-port"):
        running.run(
            start(
                InferenceService(running.service, LIMITS, AccessMiddleware()), "127.0.0.1", running.port, 1000
            )
        )


def test_every_error_of_a_request_has_a_status():
    from fewshard_serve.http.responses import HTTP_STATUS

    assert set(GRPC_STATUS) == set(HTTP_STATUS)
    assert status_of(StartError("x")) is grpc.StatusCode.INTERNAL
