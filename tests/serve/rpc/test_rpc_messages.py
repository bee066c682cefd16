"""Our .proto file against tritonclient's messages, its compiled form against protoc's, and round trips."""

import shutil
import subprocess

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from tritonclient.grpc import model_config_pb2, service_pb2

from fewshard_serve.rpc.messages import CLASSES, DESCRIPTORS, METHODS, POOL, SERVICE

OURS = [name for name, kind in CLASSES.items() if kind.DESCRIPTOR.file.package == "inference"]
IN_PART = ("ModelConfig", "ModelInput", "ModelOutput", "ModelDynamicBatching")
"""Messages of which we have only the fields that mean something here."""


def theirs(name):
    """Their message of the same full name, nested in the same one."""
    first, *inner = CLASSES[name].DESCRIPTOR.full_name.removeprefix("inference.").split(".")
    files = (service_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR)
    (found,) = [file.message_types_by_name[first] for file in files if first in file.message_types_by_name]
    for each in inner:
        found = found.nested_types_by_name[each]
    return found


def fields(descriptor):
    def kind(field):
        is_map = field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type.GetOptions().map_entry
        return (field.number, field.type, field.is_repeated, is_map)

    return {field.name: kind(field) for field in descriptor.fields}


@pytest.mark.parametrize("name", OURS)
def test_every_field_has_the_number_and_type_it_has_there(name):
    own, others = fields(CLASSES[name].DESCRIPTOR), fields(theirs(name))
    assert own == ({key: others.get(key) for key in own} if name in IN_PART else others)
    ours, other = CLASSES[name].DESCRIPTOR, theirs(name)
    assert [one.name for one in ours.oneofs] == [one.name for one in other.oneofs]


def test_the_datatypes_of_a_configuration_are_theirs():
    ours = POOL.FindEnumTypeByName("inference.DataType").values_by_name
    other = model_config_pb2.DESCRIPTOR.enum_types_by_name["DataType"].values_by_name
    assert {name: value.number for name, value in ours.items()} == {
        name: value.number for name, value in other.items()
    }


def test_the_messages_are_those_that_the_methods_need():
    reached, waiting = set(), [f"{method}{side}" for method in METHODS for side in ("Request", "Response")]
    while waiting:
        name = waiting.pop()
        reached.add(name)
        within = [field.message_type for field in CLASSES[name].DESCRIPTOR.fields if field.message_type]
        within += [
            type_.fields_by_name["value"].message_type for type_ in within if type_.GetOptions().map_entry
        ]
        waiting += {type_.name for type_ in within if not type_.GetOptions().map_entry} - reached
    assert set(OURS) == reached


def test_the_methods_are_those_of_the_service():
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert service.full_name == SERVICE
    assert METHODS[0] == "ServerLive"
    assert set(METHODS) > {"ModelInfer", "ModelConfig", "ModelStatistics", "RepositoryIndex"}
    for method in METHODS:
        found = service.methods_by_name[method]
        assert (found.input_type.name, found.output_type.name) == (f"{method}Request", f"{method}Response")


def test_the_compiled_form_is_that_of_the_proto_file(tmp_path):
    if shutil.which("protoc") is None:
        pytest.skip("no protoc here (apt install protobuf-compiler)")
    folder, made = DESCRIPTORS.parent, tmp_path / "made.binpb"
    sources = ["open_inference.proto", "health.proto"]
    subprocess.run(["protoc", f"--proto_path={folder}", f"--descriptor_set_out={made}", *sources], check=True)
    assert FileDescriptorSet.FromString(made.read_bytes()) == FileDescriptorSet.FromString(
        DESCRIPTORS.read_bytes()
    )


def test_bytes_travel_both_ways():
    sent = service_pb2.ModelInferRequest(model_name="m", raw_input_contents=[b"\x00\xff"])
    sent.parameters["timeout"].int64_param = -5
    sent.inputs.add(name="text", datatype="BYTES", shape=[1, -1]).contents.bytes_contents.append(b"x")
    received = CLASSES["ModelInferRequest"].FromString(sent.SerializeToString())
    assert received.parameters["timeout"].WhichOneof("parameter_choice") == "int64_param"
    assert list(received.inputs[0].shape) == [1, -1]
    assert service_pb2.ModelInferRequest.FromString(received.SerializeToString()) == sent
