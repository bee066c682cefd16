"""kserve's REST and gRPC clients."""

import asyncio
from typing import Any

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
    refused,
    run_all,
    same,
)
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig
from kserve.protocol.infer_type import RequestedOutput

REST, RPC = "kserve InferenceRESTClient", "kserve InferenceGRPCClient"
SERVER = f"http://{URL}"


def texts(**options: Any) -> InferRequest:
    tensor = InferInput("text", [len(TEXTS)], "BYTES", data=TEXTS)
    return InferRequest(TEXT_MODEL, [tensor], **options)


def pixels(is_binary: bool, **options: Any) -> InferRequest:
    tensor = InferInput("image", list(PIXELS.shape), "UINT8")
    tensor.set_data_from_numpy(PIXELS, binary_data=is_binary)
    return InferRequest(IMAGE_MODEL, [tensor], **options)


def logits(response: Any) -> Any:
    output = response.get_output_by_name("logits")
    return np.asarray(output.as_numpy()).reshape(output.shape)


def over_rest(request: InferRequest) -> Any:
    async def ask() -> Any:
        client = InferenceRESTClient(RESTConfig(protocol="v2"))
        return await client.infer(SERVER, request, model_name=request.model_name)

    return asyncio.run(ask())


def over_grpc(request: InferRequest) -> Any:
    async def ask() -> Any:
        return await InferenceGRPCClient(GRPC).infer(request)

    return asyncio.run(ask())


@check(REST, "live, ready, model ready")
def _() -> str:
    async def ask() -> list[bool]:
        client = InferenceRESTClient(RESTConfig(protocol="v2"))
        return [
            await client.is_server_live(SERVER),
            await client.is_server_ready(SERVER),
            await client.is_model_ready(SERVER, TEXT_MODEL),
            not await client.is_model_ready(SERVER, "nobody"),
        ]

    assert all(asyncio.run(ask()))
    return "as they are"


@check(RPC, "live, ready, model ready")
def _() -> str:
    async def ask() -> list[bool]:
        client = InferenceGRPCClient(GRPC)
        names = [await client.is_server_live(), await client.is_server_ready()]
        return [*names, await client.is_model_ready(TEXT_MODEL)]

    assert all(asyncio.run(ask()))
    return "as they are"


for client, infer in ((REST, over_rest), (RPC, over_grpc)):

    @check(client, "infer, texts")
    def _(infer: Any = infer) -> str:
        return same(logits(infer(texts())), logits_of_texts(TEXTS))

    @check(client, "infer, images, binary")
    def _(infer: Any = infer) -> str:
        return same(logits(infer(pixels(True))), logits_of_pixels(PIXELS))

    @check(client, "infer, images, not binary")
    def _(infer: Any = infer) -> str:
        return same(logits(infer(pixels(False))), logits_of_pixels(PIXELS))

    @check(client, "one output, an id, parameters")
    def _(infer: Any = infer) -> str:
        asked = texts(
            request_id="r8", parameters={"truncate": False}, request_outputs=[RequestedOutput("logits")]
        )
        response = infer(asked)
        assert response.id == "r8"
        assert [each.name for each in response.outputs] == ["logits"]
        return same(logits(response), logits_of_texts(TEXTS))

    @check(client, "an unknown model")
    def _(infer: Any = infer) -> str:
        asked = InferRequest("nobody", [InferInput("text", [1], "BYTES", data=["a"])])
        return refused(lambda: infer(asked), "there are")


@check(REST, "binary outputs")
def _() -> str:
    return same(
        logits(over_rest(pixels(True, parameters={"binary_data_output": True}))), logits_of_pixels(PIXELS)
    )


@check(REST, "the protocol V1")
def _() -> str:
    async def ask() -> Any:
        client = InferenceRESTClient(RESTConfig(protocol="v1"))
        return await client.infer(SERVER, {"instances": TEXTS}, model_name=TEXT_MODEL)

    return refused(lambda: asyncio.run(ask()), "405")


run_all()
