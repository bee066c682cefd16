"""A gRPC message is received once its caller is known, few at a time, and looked at before it is parsed."""

import gc
import threading
import time
import tracemalloc
from dataclasses import replace

import grpc
import numpy as np
import pytest
from grpc_reflection.v1alpha import reflection_pb2
from tritonclient.grpc import service_pb2

from fewshard_serve.auth import hash_of
from fewshard_serve.errors import MalformedRequest, TooLarge
from fewshard_serve.http.large_bodies import LARGE_BYTES, LargeBodies
from fewshard_serve.http.middleware import AccessMiddleware, AccessSettings
from fewshard_serve.protocol.oip import Expected
from fewshard_serve.rpc import reading, server
from fewshard_serve.rpc.convert import to_request
from fewshard_serve.rpc.messages import CLASSES
from fewshard_serve.rpc.reading import MAX_READING_OF_ONE, check_message
from fewshard_serve.rpc.reflection import MAX_STREAMS_OF_ONE
from rpc_service import LIMITS, Running

INFER = "/inference.GRPCInferenceService/ModelInfer"
DESCRIPTOR = CLASSES["ModelInferRequest"].DESCRIPTOR
ROOM = replace(LIMITS, max_body_bytes=40 * LARGE_BYTES)


def message(text="abc", num_bytes=1):
    """A request for one text, made so large by its id."""
    made = service_pb2.ModelInferRequest(model_name="text", id="x" * num_bytes)
    made.inputs.add(name="text", datatype="BYTES", shape=[1]).contents.bytes_contents.append(text.encode())
    return made.SerializeToString()


def numbers(count):
    """A request with so many one-byte numbers."""
    made = service_pb2.ModelInferRequest(model_name="text")
    tensor = made.inputs.add(name="text", datatype="UINT8", shape=[count])
    tensor.contents.uint_contents.extend([7] * count)
    return made.SerializeToString()


class Sending:
    """A call whose message is sent once `send` is called; before that the server has its headers alone."""

    def __init__(self, channel, token="", content=b"", timeout_s=20):
        self._gate, self._content = threading.Event(), content or message()
        metadata = [("authorization", f"Bearer {token}")] if token else []
        call = channel.stream_unary(INFER)
        self.answer = call.future(self._messages(), metadata=metadata, timeout=timeout_s)

    def send(self):
        self._gate.set()
        return self

    def status(self):
        self._gate.set()
        return self.answer.code()

    def _messages(self):
        self._gate.wait(20)
        yield self._content


def until(condition):
    give_up_at = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up_at, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def start_guarded(tmp_path):
    """A server with the tokens "a-secret" and "b-secret", of two callers."""
    path = tmp_path / "tokens.yaml"
    lines = [f"  - {{name: {n}, sha256: {hash_of(n + '-secret').hex()}, scopes: [predict]}}" for n in "ab"]
    path.write_text("\n".join(["tokens:", *lines]))
    servers = []

    def started(**more):
        servers.append(Running(AccessMiddleware(AccessSettings(tokens_file=str(path))), **more))
        return servers[-1]

    yield started
    for one in servers:
        one.close()


def test_who_has_no_token_is_refused_before_the_message_is_received(start_guarded):
    with grpc.insecure_channel(start_guarded().address) as channel:
        for token in ("", "wrong"):
            call = Sending(channel, token)
            assert call.answer.code() is grpc.StatusCode.UNAUTHENTICATED
            call.send()
        assert Sending(channel, "a-secret").status() is grpc.StatusCode.OK


def test_messages_that_do_not_arrive_keep_no_other_caller_out(start_guarded):
    with grpc.insecure_channel(start_guarded().address) as channel:
        slow = [Sending(channel, "a-secret") for _ in range(5 * MAX_READING_OF_ONE)]
        assert Sending(channel, "b-secret").status() is grpc.StatusCode.OK
        waiting = Sending(channel, "a-secret").send()
        time.sleep(0.1)
        assert not waiting.answer.done()
        assert {call.status() for call in slow} == {grpc.StatusCode.OK}
        assert waiting.status() is grpc.StatusCode.OK


def test_reflection_listens_to_few_silent_streams_and_keeps_answering_others(running):
    path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
    asked = reflection_pb2.ServerReflectionRequest(list_services="").SerializeToString()
    gate = threading.Event()

    def silent():
        gate.wait(20)
        yield asked

    with grpc.insecure_channel(running.address) as channel:
        streams = [channel.stream_stream(path)(silent(), timeout=20) for _ in range(4 * MAX_STREAMS_OF_ONE)]
        assert Sending(channel).status() is grpc.StatusCode.OK, "inference has turns of its own"
        gate.set()
        for stream in streams:
            (answer,) = stream
            assert b"inference.GRPCInferenceService" in answer
        too_large = iter([b"\x1a\xff\xff\xff\x07"])
        stream = channel.stream_stream(path)(too_large, timeout=20)
        assert stream.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_message_that_does_not_arrive_in_time_is_given_up(start_guarded):
    with grpc.insecure_channel(start_guarded(limits=replace(LIMITS, max_body_s=0.1)).address) as channel:
        call = Sending(channel, "a-secret")
        assert call.answer.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert "max_body_s" in call.answer.details()
        call.send()


def test_large_messages_count_until_they_are_answered(start_guarded):
    bodies = LargeBodies(replace(ROOM, max_body_bytes=LARGE_BYTES))
    running = start_guarded(limits=ROOM, bodies=bodies)
    large = 3 * LARGE_BYTES
    with grpc.insecure_channel(running.address) as channel:
        held = Sending(channel, "a-secret", message("hang", large)).send()
        until(lambda: running.service.calls)
        refused = Sending(channel, "b-secret", message("abc", large)).send()
        assert refused.answer.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(refused.answer.trailing_metadata())["retry-after"] == "1.000"
        assert Sending(channel, "b-secret").status() is grpc.StatusCode.OK
        held.answer.cancel()
        assert running.service.was_cancelled.wait(20)
        until(lambda: not bodies.budget.used)
        assert Sending(channel, "b-secret", message("abc", large)).status() is grpc.StatusCode.OK


def test_more_numbers_than_a_request_may_hold_are_refused_before_they_are_parsed(start_guarded, monkeypatch):
    monkeypatch.setattr(reading, "MAX_VALUES", 2 * LARGE_BYTES)
    monkeypatch.setattr(CLASSES["ModelInferRequest"], "FromString", lambda raw: pytest.fail("parsed"))
    with grpc.insecure_channel(start_guarded(limits=ROOM).address) as channel:
        call = Sending(channel, "a-secret", numbers(2 * LARGE_BYTES + 1)).send()
        assert call.answer.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "numbers; split the request" in call.answer.details()


def test_a_refused_message_is_not_kept_until_the_garbage_collection(start_guarded):
    """The context of an aborted call refers to itself, and an error to all that it came of."""
    running = start_guarded(limits=ROOM)
    large = 8 * LARGE_BYTES
    contents = [message("unusable", large), message("abc", large)[:-1]]
    with grpc.insecure_channel(running.address) as channel:
        for content in contents:
            assert Sending(channel, "a-secret", content).status() is grpc.StatusCode.INVALID_ARGUMENT
            gc.collect()
            gc.disable()
            tracemalloc.start()
            try:
                for _ in range(8):
                    call = Sending(channel, "a-secret", content)
                    assert call.status() is grpc.StatusCode.INVALID_ARGUMENT
                    del call
                assert tracemalloc.get_traced_memory()[0] < 4 * large
            finally:
                tracemalloc.stop()
                gc.enable()


def test_what_is_no_message_is_malformed(start_guarded):
    with grpc.insecure_channel(start_guarded(limits=ROOM).address) as channel:
        for content in (b"\x0a\xff", b"\x0b" * LARGE_BYTES, b"\xff" * LARGE_BYTES, b"\x2a\x05" * LARGE_BYTES):
            call = Sending(channel, "a-secret", content).send()
            assert call.answer.code() is grpc.StatusCode.INVALID_ARGUMENT, content[:4]


def test_numbers_are_counted_wherever_they_are_and_however_they_are_encoded():
    made = CLASSES["ModelInferRequest"]()
    for field in ("uint_contents", "int64_contents", "fp32_contents", "fp64_contents"):
        getattr(made.inputs.add(shape=[1]).contents, field).extend([1000] * 10)
    made.inputs[0].contents.int_contents.extend([-1, 300])
    guard = reading._Guard(4 * 4 + 1)  # each tensor, its shape, its contents, and the numbers in these
    guard.walk(memoryview(made.SerializeToString()), DESCRIPTOR)
    assert guard._num_values == 4 * 10 + 2 + 4
    assert guard._num_fields == 4 * 4 + 1


@pytest.mark.parametrize("place", ["request", "input", "output"])
def test_fields_are_counted_wherever_they_are(place):
    made = CLASSES["ModelInferRequest"]()
    of_place = {"request": made, "input": made.inputs.add(), "output": made.outputs.add()}
    for number in range(100):
        of_place[place].parameters[str(number)].bool_param = True
    check_message(made.SerializeToString(), DESCRIPTOR, 500)
    with pytest.raises(TooLarge, match="over 300 fields"):
        check_message(made.SerializeToString(), DESCRIPTOR, 300)


def test_a_tensor_is_looked_at_before_its_data():
    looked = []

    def look(*seen):
        looked.append(seen)
        raise MalformedRequest("not for this model")

    made = CLASSES["ModelInferRequest"].FromString(numbers(3))
    made.inputs[0].shape[:] = [5]
    with pytest.raises(MalformedRequest, match="not for this model"):
        to_request(made, Expected(look))
    assert looked == [("text", "UINT8", (5,))]


@pytest.mark.parametrize(
    ("datatype", "field", "values"),
    [
        ("INT8", "int_contents", [-128, 127]),
        ("UINT64", "uint64_contents", [2**64 - 1]),
        ("BOOL", "bool_contents", [True]),
    ],
)
def test_numbers_arrive_as_they_were_sent(datatype, field, values):
    made = CLASSES["ModelInferRequest"]()
    getattr(made.inputs.add(name="x", datatype=datatype, shape=[len(values)]).contents, field).extend(values)
    found = to_request(made).inputs["x"]
    assert found.data.tolist() == values
    made.inputs[0].datatype = "INT8"
    made.inputs[0].contents.int_contents[:] = [128] * len(values)
    with pytest.raises(MalformedRequest, match="does not fit INT8"):
        to_request(made)
    assert isinstance(found.data, np.ndarray)


def test_idle_connections_are_ended_and_the_next_call_opens_another(monkeypatch, start_guarded):
    monkeypatch.setattr(server, "MAX_IDLE_S", 0.2)
    with grpc.insecure_channel(start_guarded().address) as channel:
        states, is_idle = [], threading.Event()

        def changed(state):
            states.append(state)
            if state is grpc.ChannelConnectivity.IDLE and grpc.ChannelConnectivity.READY in states:
                is_idle.set()

        channel.subscribe(changed)
        assert Sending(channel, "a-secret").status() is grpc.StatusCode.OK
        assert is_idle.wait(20)
        assert Sending(channel, "a-secret").status() is grpc.StatusCode.OK
