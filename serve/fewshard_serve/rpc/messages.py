"""The messages of the Open Inference Protocol's gRPC service, built from a table of names, numbers and types.

They live in a pool of their own, so that a client library with the same messages may be loaded beside them. A
test holds every number against tritonclient's. Source: kserve/open-inference-protocol, `grpc` part of the
specification.
"""

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Field

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"

METHODS = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")
"""Each takes a message named so with `Request`, and gives one with `Response`."""

_PARAMETERS = "map parameters"
_MODEL = {"string name": 1, "string version": 2}
_TENSOR_HEAD = {"string name": 1, "string datatype": 2, "repeated int64 shape": 3}

MESSAGES: dict[str, dict[str, int]] = {
    "ServerLiveRequest": {},
    "ServerLiveResponse": {"bool live": 1},
    "ServerReadyRequest": {},
    "ServerReadyResponse": {"bool ready": 1},
    "ModelReadyRequest": _MODEL,
    "ModelReadyResponse": {"bool ready": 1},
    "ServerMetadataRequest": {},
    "ServerMetadataResponse": {"string name": 1, "string version": 2, "repeated string extensions": 3},
    "ModelMetadataRequest": _MODEL,
    "TensorMetadata": _TENSOR_HEAD,
    "ModelMetadataResponse": {
        "string name": 1,
        "repeated string versions": 2,
        "string platform": 3,
        "repeated TensorMetadata inputs": 4,
        "repeated TensorMetadata outputs": 5,
    },
    "InferParameter": {
        "bool bool_param": 1,
        "int64 int64_param": 2,
        "string string_param": 3,
        "double double_param": 4,
        "uint64 uint64_param": 5,
    },
    "InferTensorContents": {
        "repeated bool bool_contents": 1,
        "repeated int32 int_contents": 2,
        "repeated int64 int64_contents": 3,
        "repeated uint32 uint_contents": 4,
        "repeated uint64 uint64_contents": 5,
        "repeated float fp32_contents": 6,
        "repeated double fp64_contents": 7,
        "repeated bytes bytes_contents": 8,
    },
    "InferInputTensor": {**_TENSOR_HEAD, _PARAMETERS: 4, "InferTensorContents contents": 5},
    "InferOutputTensor": {**_TENSOR_HEAD, _PARAMETERS: 4, "InferTensorContents contents": 5},
    "InferRequestedOutputTensor": {"string name": 1, _PARAMETERS: 2},
    "ModelInferRequest": {
        "string model_name": 1,
        "string model_version": 2,
        "string id": 3,
        _PARAMETERS: 4,
        "repeated InferInputTensor inputs": 5,
        "repeated InferRequestedOutputTensor outputs": 6,
        "repeated bytes raw_input_contents": 7,
    },
    "ModelInferResponse": {
        "string model_name": 1,
        "string model_version": 2,
        "string id": 3,
        _PARAMETERS: 4,
        "repeated InferOutputTensor outputs": 5,
        "repeated bytes raw_output_contents": 6,
    },
}
"""`[repeated] type name`; `map` stands for map<string, InferParameter>."""

ONE_OF = {"InferParameter": "parameter_choice"}
"""Messages of whose fields exactly one is set."""


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="fewshard/open_inference.proto", package=PACKAGE, syntax="proto3"
    )
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        if name in ONE_OF:
            message.oneof_decl.add(name=ONE_OF[name])
        for words, number in fields.items():
            _add_field(message, words.split(), number)
    return file


def _add_field(message: descriptor_pb2.DescriptorProto, words: list[str], number: int) -> None:
    *label, kind, name = words
    field = message.field.add(name=name, number=number)
    is_many = label == ["repeated"] or kind == "map"
    field.label = Field.LABEL_REPEATED if is_many else Field.LABEL_OPTIONAL
    if message.name in ONE_OF:
        field.oneof_index = 0
    if kind == "map":
        kind = _add_map_entry(message)
    _set_type(field, kind)


def _add_map_entry(message: descriptor_pb2.DescriptorProto) -> str:
    """The hidden message of which a map is a list; its name."""
    entry = message.nested_type.add(name="ParametersEntry")
    entry.options.map_entry = True
    for name, kind, number in (("key", "string", 1), ("value", "InferParameter", 2)):
        field = entry.field.add(name=name, number=number, label=Field.LABEL_OPTIONAL)
        _set_type(field, kind)
    return f"{message.name}.ParametersEntry"


def _set_type(field: Field, kind: str) -> None:
    scalar = getattr(Field, f"TYPE_{kind.upper()}", None)
    if scalar is None:
        field.type = Field.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{kind}"
    else:
        field.type = scalar


def _classes() -> dict[str, Any]:
    pool = descriptor_pool.DescriptorPool()
    pool.Add(_file())
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))
        for name in MESSAGES
    }


CLASSES = _classes()
"""The message classes by name."""
