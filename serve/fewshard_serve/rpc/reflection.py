"""gRPC's server reflection, by which grpcurl, Postman and others learn the methods; `server` adds it.

grpcio-reflection answers version v1alpha only; v1 has the same messages under another name.
"""

from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, text_format
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import aio

from fewshard_serve.core import ANYBODY
from fewshard_serve.errors import ServeError
from fewshard_serve.fairness import Turns
from fewshard_serve.rpc.messages import HEALTH, POOL, SERVICE
from fewshard_serve.rpc.reading import MessageReader, alone

OLD, NEW = "grpc.reflection.v1alpha", "grpc.reflection.v1"
MAX_STREAMS, MAX_STREAMS_OF_ONE = 16, 4
"""Streams that are listened to at a time: anybody may open one, and say nothing in it."""


def handlers(reader: MessageReader) -> tuple[grpc.GenericRpcHandler, ...]:
    """The handlers of both versions to add to a gRPC server, which reads with `reader`."""
    own = MessageReader(reader.limits, reader.bodies, Turns(MAX_STREAMS, MAX_STREAMS_OF_ONE))
    names = [f"{package}.ServerReflection" for package in (OLD, NEW)]
    servicer = aio.ReflectionServicer([SERVICE, HEALTH, *names], POOL)

    async def answer(_: Any, context: Any) -> AsyncIterator[Any]:
        try:
            with own.reading(context, ANYBODY) as reading:
                asked = reading.messages(reflection_pb2.ServerReflectionRequest)
                async for response in servicer.ServerReflectionInfo(asked, context):
                    yield response
                return
        except ServeError as raised:
            error = alone(raised)
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    method = grpc.stream_stream_rpc_method_handler(
        answer, response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString
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
