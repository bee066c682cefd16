"""MLServer's messages over REST and gRPC, its codecs, and its command `mlserver infer`."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from common import (
    GRPC,
    IMAGE_MODEL,
    PIXELS,
    TEXT_MODEL,
    TEXTS,
    URL,
    check,
    logits_of_pixels,
    logits_of_texts,
    png,
    post,
    refused,
    run_all,
    same,
)
from mlserver.codecs import Base64Codec, NumpyCodec, StringCodec
from mlserver.grpc import converters, dataplane_pb2, dataplane_pb2_grpc
from mlserver.types import InferenceRequest, InferenceResponse, RequestInput, RequestOutput

REST, RPC, CLI = "mlserver, REST", "mlserver, gRPC", "mlserver infer"

stub = dataplane_pb2_grpc.GRPCInferenceServiceStub(grpc.insecure_channel(GRPC))


def over_rest(model: str, request: InferenceRequest) -> Any:
    body = request.model_dump_json().encode()  # every absent field is null
    return InferenceResponse.model_validate(post(f"/v2/models/{model}/infer", body))


def over_grpc(model: str, request: InferenceRequest, use_raw: bool = False) -> Any:
    message = converters.ModelInferRequestConverter.from_types(request, model_name=model, use_raw=use_raw)
    return converters.ModelInferResponseConverter.to_types(stub.ModelInfer(message, timeout=60))


def over_raw_grpc(model: str, request: InferenceRequest) -> Any:
    return over_grpc(model, request, use_raw=True)


def logits(response: Any) -> Any:
    (output,) = [each for each in response.outputs if each.name == "logits"]
    return np.asarray(NumpyCodec.decode_output(output)).reshape(output.shape)


def asking(*inputs: RequestInput, **options: Any) -> InferenceRequest:
    return InferenceRequest(inputs=list(inputs), outputs=[RequestOutput(name="logits")], **options)


for client, infer in ((REST, over_rest), (RPC, over_grpc), (f"{RPC}, use_raw", over_raw_grpc)):

    @check(client, "StringCodec")
    def _(infer: Any = infer) -> str:
        asked = asking(StringCodec.encode_input("text", TEXTS), id="r9")
        response = infer(TEXT_MODEL, asked)
        assert response.id == "r9"
        return same(logits(response), logits_of_texts(TEXTS))

    @check(client, "NumpyCodec, images")
    def _(infer: Any = infer) -> str:
        asked = asking(NumpyCodec.encode_input("image", PIXELS))
        return same(logits(infer(IMAGE_MODEL, asked)), logits_of_pixels(PIXELS))

    @check(client, "Base64Codec, an image file")
    def _(infer: Any = infer) -> str:
        asked = asking(Base64Codec.encode_input("image", [png(PIXELS[0])], use_bytes=infer is over_grpc))
        return same(logits(infer(IMAGE_MODEL, asked)), logits_of_pixels(PIXELS[:1]))

    @check(client, "Base64Codec, texts")
    def _(infer: Any = infer) -> str:
        encoded = Base64Codec.encode_input(
            "text", [text.encode() for text in TEXTS], use_bytes=infer is over_grpc
        )
        return same(logits(infer(TEXT_MODEL, asking(encoded))), logits_of_texts(TEXTS))

    @check(client, "a content type that is not read")
    def _(infer: Any = infer) -> str:
        asked = StringCodec.encode_input("text", TEXTS)
        assert asked.parameters
        asked.parameters.content_type = "hg_json"
        return refused(lambda: infer(TEXT_MODEL, asking(asked)), "'hg_json' is not read")


@check(RPC, "metadata, readiness, repository index, load")
def _() -> str:
    assert stub.ServerLive(dataplane_pb2.ServerLiveRequest()).live
    assert stub.ServerReady(dataplane_pb2.ServerReadyRequest()).ready
    assert stub.ModelReady(dataplane_pb2.ModelReadyRequest(name=TEXT_MODEL)).ready
    assert stub.ModelMetadata(dataplane_pb2.ModelMetadataRequest(name=TEXT_MODEL)).name == TEXT_MODEL
    index = stub.RepositoryIndex(dataplane_pb2.RepositoryIndexRequest())
    assert TEXT_MODEL in [each.name for each in index.models]
    stub.RepositoryModelLoad(dataplane_pb2.RepositoryModelLoadRequest(model_name=TEXT_MODEL))
    other = dataplane_pb2.RepositoryModelLoadRequest(model_name="nobody")
    return refused(lambda: stub.RepositoryModelLoad(other), "the configuration has no model 'nobody'")


for is_binary in (False, True):

    @check(CLI, "a file of requests" + (", binary data" if is_binary else ""))
    def _(is_binary: bool = is_binary) -> str:
        lines = [StringCodec.encode_input("text", [text], use_bytes=False) for text in TEXTS]
        asked = [json.dumps({"inputs": [line.model_dump(exclude_none=True)]}) for line in lines]
        with tempfile.TemporaryDirectory() as folder:
            given, taken = Path(folder, "in.jsonl"), Path(folder, "out.jsonl")
            given.write_text("\n".join(asked) + "\n")
            command = [Path(sys.executable).with_name("mlserver"), "infer", "-u", URL, "-m", TEXT_MODEL]
            options = ["-i", given, "-o", taken, "-w", "2", "-s", "2", *(["-b"] if is_binary else [])]
            done = subprocess.run(
                [*command, *options], capture_output=True, text=True, timeout=120, check=False
            )
            assert done.returncode == 0, done.stderr[-300:]
            answers = [json.loads(line) for line in taken.read_text().splitlines()]
        assert len(answers) == len(TEXTS), answers
        found = {}
        for answer in answers:
            (values,) = [each["data"] for each in answer["outputs"] if each["name"] == "logits"]
            found[
                answer["parameters"]["batch_index"] if "batch_index" in answer["parameters"] else len(found)
            ] = values
        return same([found[index] for index in sorted(found)], logits_of_texts(TEXTS))


run_all()
