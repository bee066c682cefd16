"""gRPC's server reflection, by which grpcurl, Postman and others learn the methods; `server` adds it.

grpcio-reflection answers version v1alpha only; v1 has the same messages under another name.
"""

import grpc
from google.protobuf import descriptor_pb2, text_format
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import aio

from fewshard_serve.rpc.messages import HEALTH, POOL, SERVICE

OLD, NEW = "grpc.reflection.v1alpha", "grpc.reflection.v1"


def handlers() -> tuple[grpc.GenericRpcHandler, ...]:
    """The handlers of both versions to add to a gRPC server."""
    names = [f"{package}.ServerReflection" for package in (OLD, NEW)]
    servicer = aio.ReflectionServicer([SERVICE, HEALTH, *names], POOL)
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return tuple(
        grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method}) for name in names
    )


def _describe_itself() -> None:
    """Add both versions to the pool, so that clients can ask for them too."""
    old = descriptor_pb2.FileDescriptorProto.FromString(reflection_pb2.DESCRIPTOR.serialized_pb)
    POOL.Add(old)
    text = text_format.MessageToString(old).replace("v1alpha", "v1")
    POOL.Add(text_format.Parse(text, descriptor_pb2.FileDescriptorProto()))


_describe_itself()
