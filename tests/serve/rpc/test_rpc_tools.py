"""What tools ask first over gRPC: health, reflection, configuration, index, statistics, and pings."""

import socket
import struct
import time
from contextlib import suppress

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from fewshard_serve.rpc.messages import CLASSES, HEALTH, SERVICE
from fewshard_serve.rpc.server import MIN_PING_INTERVAL_S
from rpc_service import stub


def health(running, kind, service=""):
    channel = grpc.insecure_channel(running.address)
    codecs = CLASSES["HealthCheckRequest"].SerializeToString, CLASSES["HealthCheckResponse"].FromString
    method = (channel.unary_unary if kind == "Check" else channel.unary_stream)(f"/{HEALTH}/{kind}", *codecs)
    return method(CLASSES["HealthCheckRequest"](service=service), timeout=10)


SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3


def test_health_follows_the_server(running):
    for service in ("", SERVICE):
        running.service.is_ready = False
        assert health(running, "Check", service).status == NOT_SERVING
        running.service.is_ready = True
        assert health(running, "Check", service).status == SERVING
    with pytest.raises(grpc.RpcError, match="there is no service 'mail'") as refusal:
        health(running, "Check", "mail")
    assert refusal.value.code() is grpc.StatusCode.NOT_FOUND


def test_who_watches_the_health_hears_of_changes_and_of_the_end(running):
    watching = health(running, "Watch")
    assert next(watching).status == NOT_SERVING
    running.service.is_ready = True
    assert next(watching).status == SERVING
    unknown = health(running, "Watch", "mail")
    assert next(unknown).status == SERVICE_UNKNOWN
    running.run(running._server.stop(10))
    assert [each.status for each in watching] == [NOT_SERVING]
    assert list(unknown) == []


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_describes_every_service(running, version):
    """The two versions differ in their name alone, so messages of one serve both."""
    method = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    ask = grpc.insecure_channel(running.address).stream_stream(
        method,
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )

    def reflected(**request):
        (answer,) = ask(iter([reflection_pb2.ServerReflectionRequest(**request)]), timeout=10)
        return answer

    names = [each.name for each in reflected(list_services="").list_services_response.service]
    assert set(names) == {
        SERVICE,
        HEALTH,
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    for name in names:
        (file, *_) = reflected(file_containing_symbol=name).file_descriptor_response.file_descriptor_proto
        described = descriptor_pb2.FileDescriptorProto.FromString(file)
        assert name.rpartition(".")[0] == described.package
        assert [service.name for service in described.service] == [name.rpartition(".")[2]]
    assert reflected(file_containing_symbol="mail.Box").error_response.error_code == 5


def test_the_configuration(client):
    config = client.get_model_config("image", as_json=True)["config"]
    assert config["max_batch_size"] == 64
    assert config["input"] == [{"name": "image", "data_type": "TYPE_UINT8", "dims": ["-1", "-1", "3"]}]
    assert config["output"][2] == {"name": "label", "data_type": "TYPE_STRING"}
    assert "dynamic_batching" in config
    with pytest.raises(InferenceServerException, match="no version '7'"):
        client.get_model_config("image", "7")
    with pytest.raises(InferenceServerException, match="reading weights"):
        client.get_model_config("slow")


def test_the_index(running, client):
    states = [(each.name, each.state, each.reason) for each in client.get_model_repository_index().models]
    assert states == [("text", "READY", ""), ("image", "READY", ""), ("slow", "LOADING", "reading weights")]
    ready = stub(running).RepositoryIndex(service_pb2.RepositoryIndexRequest(ready=True))
    assert [each.name for each in ready.models] == ["text", "image"]
    with pytest.raises(grpc.RpcError, match="one repository"):
        stub(running).RepositoryIndex(service_pb2.RepositoryIndexRequest(repository_name="other"))


def test_models_are_loaded_and_unloaded(running, client):
    client.load_model("text")
    client.unload_model("text")
    assert running.service.calls[-2:] == [("load", "text"), ("unload", "text")]
    with pytest.raises(InferenceServerException, match="'config' is not taken"):
        client.load_model("text", config="{}")
    with pytest.raises(InferenceServerException, match="unload each model by its name"):
        client.unload_model("text", unload_dependents=True)
    with pytest.raises(grpc.RpcError, match="no model 'nobody'") as refusal:
        stub(running).RepositoryModelLoad(service_pb2.RepositoryModelLoadRequest(model_name="nobody"))
    assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(grpc.RpcError, match="one repository"):
        stub(running).RepositoryModelUnload(service_pb2.RepositoryModelUnloadRequest(repository_name="other"))


def test_the_statistics(client):
    (entry,) = client.get_inference_statistics("text").model_stats
    assert (entry.name, entry.inference_count, entry.execution_count) == ("text", 2, 1)
    assert entry.inference_stats.success.ns == 6_000_000
    assert entry.batch_stats[0].compute_infer.ns == 3_000_000
    assert [each.name for each in client.get_inference_statistics().model_stats] == ["text", "image"]
    with pytest.raises(InferenceServerException, match="nobody"):
        client.get_inference_statistics("nobody")


@pytest.mark.parametrize("method", ["SystemSharedMemoryStatus", "TraceSetting", "LogSettings"])
def test_methods_that_are_not_offered_are_refused_with_those_that_are(running, method):
    request = getattr(service_pb2, f"{method}Request")()
    with pytest.raises(grpc.RpcError, match="not offered here; there are: ServerLive, ") as refusal:
        getattr(stub(running), method)(request)
    assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert dict(refusal.value.trailing_metadata())["code"] == "not_found"


def test_a_stream_of_requests_is_refused_too(running):
    with pytest.raises(grpc.RpcError, match="not offered here"):
        list(stub(running).ModelStreamInfer(iter([service_pb2.ModelInferRequest()])))


def frame(kind, body=b"", flags=0):
    return struct.pack(">I", len(body))[1:] + bytes([kind, flags, 0, 0, 0, 0]) + body


SETTINGS, PING, GOAWAY, ACK = 4, 6, 7, 1


@pytest.mark.slow  # it waits between pings, as clients do
def test_a_connection_that_is_kept_alive_by_pings_stays_open(running):
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS) + frame(SETTINGS, flags=ACK))
        for _ in range(5):
            time.sleep(MIN_PING_INTERVAL_S + 0.1)
            connection.sendall(frame(PING, b"8 bytes."))
        connection.settimeout(0.5)
        received = b""
        with suppress(TimeoutError):  # a connection that is closed would end the loop as well
            while chunk := connection.recv(1 << 16):
                received += chunk
        connection.sendall(frame(PING, b"8 bytes."))
        assert connection.recv(1 << 16)
    kinds = []
    while received:
        length = int.from_bytes(received[:3])
        kinds.append(received[3])
        received = received[9 + length :]
    assert kinds.count(PING) >= 5
    assert GOAWAY not in kinds
