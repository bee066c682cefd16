"""tritonclient over HTTP and gRPC."""

from types import ModuleType
from typing import Any

import numpy as np
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from common import (
    GRPC,
    IMAGE_MODEL,
    MANY,
    PIXELS,
    TEXT_MODEL,
    TEXTS,
    URL,
    check,
    labels_of,
    logits_of_pixels,
    logits_of_texts,
    refused,
    run_all,
    same,
)


def texts(lib: ModuleType, **options: Any) -> Any:
    tensor = lib.InferInput("text", [len(TEXTS), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[text.encode()] for text in TEXTS], dtype=object), **options)
    return tensor


def pixels(lib: ModuleType, images: Any) -> Any:
    tensor = lib.InferInput("image", list(images.shape), "UINT8")
    tensor.set_data_from_numpy(images)
    return tensor


def add_checks(name: str, lib: ModuleType, address: str, **options: Any) -> None:
    client = lib.InferenceServerClient(address, **options)
    as_json = {"as_json": True} if lib is over_grpc else {}

    @check(name, "health, readiness, metadata")
    def _() -> str:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(TEXT_MODEL)
        found = client.get_model_metadata(TEXT_MODEL, **as_json)
        return f"inputs {[each['name'] for each in found['inputs']]}"

    @check(name, "get_model_config")
    def _() -> str:
        config = client.get_model_config(IMAGE_MODEL, **as_json)
        config = config.get("config", config)
        assert int(config["max_batch_size"]) > 0
        assert [int(size) for size in config["input"][0]["dims"]] == [-1, -1, 3]
        return f"max_batch_size {config['max_batch_size']}"

    @check(name, "get_model_repository_index")
    def _() -> str:
        index = client.get_model_repository_index(**as_json)
        models = index["models"] if lib is over_grpc else index
        states = {each["name"]: each["state"] for each in models}
        assert states[TEXT_MODEL] == states[IMAGE_MODEL] == "READY"
        return f"{len(states)} models"

    @check(name, "infer, BYTES, binary")
    def _() -> str:
        return same(client.infer(TEXT_MODEL, [texts(lib)]).as_numpy("logits"), logits_of_texts(TEXTS))

    @check(name, "get_inference_statistics")
    def _() -> str:
        def count() -> int:
            found = client.get_inference_statistics(TEXT_MODEL, **as_json)
            return int(found["model_stats"][0]["inference_count"])

        before = count()
        client.infer(TEXT_MODEL, [texts(lib)])
        assert count() >= before + len(TEXTS)
        return f"{count()} items"

    @check(name, "infer, images UINT8")
    def _() -> str:
        found = client.infer(IMAGE_MODEL, [pixels(lib, PIXELS)]).as_numpy("logits")
        return same(found, logits_of_pixels(PIXELS))

    @check(name, f"infer, {MANY} images, over 4 MiB")
    def _() -> str:
        images = np.tile(PIXELS, (MANY // 2, 1, 1, 1))
        outputs = [lib.InferRequestedOutput("logits")]
        found = client.infer(IMAGE_MODEL, [pixels(lib, images)], outputs=outputs).as_numpy("logits")
        return same(found, np.tile(logits_of_pixels(PIXELS), (MANY // 2, 1)))

    @check(name, "classification extension")
    def _() -> str:
        outputs = [lib.InferRequestedOutput("logits", class_count=1)]
        found = client.infer(TEXT_MODEL, [texts(lib)], outputs=outputs).as_numpy("logits").ravel()
        names = [each.decode().split(":")[2] for each in found]
        right = [labels_of(TEXT_MODEL)[best] for best in logits_of_texts(TEXTS).argmax(axis=1)]
        assert names == right, names
        return f"{names}"

    @check(name, "request id, timeout, truncate")
    def _() -> str:
        options = {"request_id": "r7", "timeout": 9_000_000, "parameters": {"truncate": False}}
        found = client.infer(TEXT_MODEL, [texts(lib)], **options).get_response()
        assert (found["id"] if isinstance(found, dict) else found.id) == "r7"
        return "heard"

    @check(name, "priority, a parameter there is not")
    def _() -> str:
        refused(lambda: client.infer(TEXT_MODEL, [texts(lib)], priority=1), "X-Request-Priority")
        call = lambda: client.infer(TEXT_MODEL, [texts(lib)], parameters={"truncat": True})  # noqa: E731
        return refused(call, "did you mean 'truncate'")

    @check(name, "shared memory")
    def _() -> str:
        tensor = texts(lib)
        tensor.set_shared_memory("region", 64)
        return refused(lambda: client.infer(TEXT_MODEL, [tensor]), "shared memory is not offered")

    @check(name, "load_model")
    def _() -> str:
        return refused(lambda: client.load_model(TEXT_MODEL), "")


add_checks("tritonclient.http", over_http, URL, network_timeout=120)
add_checks("tritonclient.grpc", over_grpc, GRPC)

plain = over_http.InferenceServerClient(URL)


@check("tritonclient.http", "infer in JSON, outputs in JSON")
def _() -> str:
    outputs = [over_http.InferRequestedOutput("logits", binary_data=False)]
    found = plain.infer(TEXT_MODEL, [texts(over_http, binary_data=False)], outputs=outputs)
    return same(found.as_numpy("logits"), logits_of_texts(TEXTS))


@check("tritonclient.http", "gzip and deflate, both ways")
def _() -> str:
    for coding in ("gzip", "deflate"):
        codings = {"request_compression_algorithm": coding, "response_compression_algorithm": coding}
        found = plain.infer(TEXT_MODEL, [texts(over_http)], **codings).as_numpy("logits")
        told = same(found, logits_of_texts(TEXTS))
    return told


@check("tritonclient.grpc", "keep-alive pings every 10 s for 35 s")
def _() -> str:
    import time

    options = over_grpc.KeepAliveOptions(10_000, 5_000, keepalive_permit_without_calls=True)
    client = over_grpc.InferenceServerClient(GRPC, keepalive_options=options)
    for _ in range(2):
        found = client.infer(TEXT_MODEL, [texts(over_grpc)]).as_numpy("logits")
        time.sleep(35 / 2)
    return same(found, logits_of_texts(TEXTS))


run_all()
