"""The message table against tritonclient's own messages, and round trips through both."""

import pytest
from google.protobuf.descriptor import FieldDescriptor
from tritonclient.grpc import service_pb2

from fewshard_serve.rpc.messages import CLASSES, MESSAGES, METHODS, SERVICE

NESTED = {
    "TensorMetadata": ("ModelMetadataResponse", "TensorMetadata"),
    "InferInputTensor": ("ModelInferRequest", "InferInputTensor"),
    "InferOutputTensor": ("ModelInferResponse", "InferOutputTensor"),
    "InferRequestedOutputTensor": ("ModelInferRequest", "InferRequestedOutputTensor"),
}
"""Messages that are inside others there; their names are not sent."""


def theirs(name):
    outer, *inner = NESTED.get(name, (name,))
    found = service_pb2.DESCRIPTOR.message_types_by_name[outer]
    return found.nested_types_by_name[inner[0]] if inner else found


def fields(descriptor):
    def kind(field):
        is_map = field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type.GetOptions().map_entry
        return (field.number, field.type, field.is_repeated, is_map)

    return {field.name: kind(field) for field in descriptor.fields}


@pytest.mark.parametrize("name", MESSAGES)
def test_every_field_has_the_number_and_type_it_has_there(name):
    assert fields(CLASSES[name].DESCRIPTOR) == fields(theirs(name))
    ours, other = CLASSES[name].DESCRIPTOR, theirs(name)
    assert [one.name for one in ours.oneofs] == [one.name for one in other.oneofs]


def test_the_methods_are_those_of_the_service():
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert service.full_name == SERVICE
    for method in METHODS:
        found = service.methods_by_name[method]
        assert (found.input_type.name, found.output_type.name) == (f"{method}Request", f"{method}Response")


def test_bytes_travel_both_ways():
    sent = service_pb2.ModelInferRequest(model_name="m", raw_input_contents=[b"\x00\xff"])
    sent.parameters["timeout"].int64_param = -5
    sent.inputs.add(name="text", datatype="BYTES", shape=[1, -1]).contents.bytes_contents.append(b"x")
    received = CLASSES["ModelInferRequest"].FromString(sent.SerializeToString())
    assert received.parameters["timeout"].WhichOneof("parameter_choice") == "int64_param"
    assert list(received.inputs[0].shape) == [1, -1]
    assert service_pb2.ModelInferRequest.FromString(received.SerializeToString()) == sent
