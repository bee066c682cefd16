"""tritonclient.grpc and bare messages against the service on a port of this machine."""

import asyncio
import threading
import time

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from fewshard_core.values import EncodedImage, ModelInfo
from fewshard_serve.auth import hash_of
from fewshard_serve.core import Caller, Classified, Timings
from fewshard_serve.errors import (
    DeadlineExceeded,
    InternalError,
    NotReady,
    Overloaded,
    StartError,
    TooLarge,
    UnusableItem,
)
from fewshard_serve.http.middleware import AccessMiddleware, AccessSettings
from fewshard_serve.http.service import ModelEntry
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.rpc.server import GRPC_STATUS, InferenceService, start, status_of

LIMITS = Limits(max_items=64, max_body_bytes=100_000)
RAISED = {
    "overloaded": Overloaded("too much", 1.25),
    "late": DeadlineExceeded("late"),
    "unusable": UnusableItem(0, "no"),
    "draining": NotReady("draining"),
    "broken": InternalError("broken"),
    "large": TooLarge("large"),
    "bug": KeyError("secret detail"),
}


def info_of(name, task):
    return ModelInfo(
        name, task, "dense", ("long", "short"), "single_label_classification", "x", "fp32", "cpu", 128
    )


class Service:
    """Two models; the first logit of a text is its length."""

    def __init__(self):
        self.calls, self.was_cancelled = [], threading.Event()

    async def model_index(self):
        ready = [ModelEntry(name, "READY", info=info_of(name, name)) for name in ("text", "image")]
        return [*ready, ModelEntry("slow", "LOADING", reason="reading weights")]

    async def ready(self):
        return False

    async def classify(self, model, request):
        inputs = request.inputs
        self.calls.append((model, inputs, request.truncate, request.timeout_s, request.caller))
        lengths = []
        for one in inputs:
            text = getattr(one, "text", "")
            if text in RAISED:
                raise RAISED[text]
            if text == "hang":
                await self._hang()
            lengths.append([np.nan if text == "nan" else len(text), 0])
        return Classified(np.array(lengths, np.float32), 5 * len(inputs), Timings(0.001, 0.002, 0.003))

    async def _hang(self):
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            self.was_cancelled.set()
            raise


class Running:
    """The service on an event loop in a thread."""

    def __init__(self, doors=None):
        self.service, self.counted = Service(), []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        inference = InferenceService(
            self.service, LIMITS, doors or AccessMiddleware(), lambda *seen: self.counted.append(seen[:3])
        )
        self.port = free_port()
        self._server = self.run(start(inference, "127.0.0.1", self.port, LIMITS.max_body_bytes))

    @property
    def address(self):
        return f"127.0.0.1:{self.port}"

    def run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def close(self):
        self.run(self._server.stop(None))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def running():
    one = Running()
    yield one
    one.close()


@pytest.fixture
def client(running):
    with triton.InferenceServerClient(running.address) as one:
        yield one


def text_input(*texts, name="text", shape=None):
    tensor = triton.InferInput(name, list(shape or [len(texts)]), "BYTES")
    tensor.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=object).reshape(shape or -1))
    return tensor


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


def stub(running):
    return service_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(running.address))


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
    unset = request()
    unset.parameters["truncate"].SetInParent()
    yield "a parameter without a value", unset
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
        assert client.is_model_ready("text")
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
