"""The messages of the gRPC services, as `open_inference.proto` and `health.proto` define them.

They are in a descriptor pool of their own, so that a client library with the same messages can be loaded in
the same process. A test compares every field with tritonclient's.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "inference.GRPCInferenceService"
HEALTH = "grpc.health.v1.Health"
DESCRIPTORS = Path(__file__).with_name("open_inference.binpb")
"""The descriptor set that `protoc` compiled from the .proto files beside it."""


def _pool() -> Any:
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file:
        pool.Add(file)
    return pool


def _messages(descriptors: Iterable[Any]) -> Iterator[Any]:
    """These messages and their nested messages, without the generated entry messages of maps."""
    for descriptor in descriptors:
        if not descriptor.GetOptions().map_entry:
            yield descriptor
            yield from _messages(descriptor.nested_types)


POOL = _pool()

METHODS: tuple[str, ...] = tuple(method.name for method in POOL.FindServiceByName(SERVICE).methods)
"""In the order of the .proto file. `X` takes the message `XRequest` and returns the message `XResponse`."""

CLASSES: dict[str, Any] = {
    descriptor.name: message_factory.GetMessageClass(descriptor)
    for service in (SERVICE, HEALTH)
    for descriptor in _messages(POOL.FindServiceByName(service).file.message_types_by_name.values())
}
"""Message classes by name, nested ones included. Names are unique across both files."""
