"""huggingface_hub, openai, perf_analyzer, gRPC's own tools, and curl."""

import gzip
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import grpc
from common import (
    GRPC,
    IMAGE_MODEL,
    PIXELS,
    TEXT_MODEL,
    TEXTS,
    URL,
    check,
    labels_of,
    logits_of_pixels,
    logits_of_texts,
    png,
    ranking,
    refused,
    run_all,
    same_ranking,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from huggingface_hub import InferenceClient
from openai import NotFoundError, OpenAI

HUB = "huggingface_hub InferenceClient"


def hub(model: str) -> InferenceClient:
    return InferenceClient(base_url=f"http://{URL}/v2/models/{model}")


def pairs(found: Any) -> list[tuple[str, float]]:
    return [(each.label, each.score) for each in found]


@check(HUB, "text_classification")
def _() -> str:
    right = ranking(TEXT_MODEL, logits_of_texts(TEXTS)[0])
    return same_ranking(pairs(hub(TEXT_MODEL).text_classification(TEXTS[0])), right)


@check(HUB, "text_classification, top_k and function_to_apply")
def _() -> str:
    logits = logits_of_texts(TEXTS)[0]
    right = max(zip(labels_of(TEXT_MODEL), logits.tolist(), strict=True), key=lambda pair: pair[1])
    found = hub(TEXT_MODEL).text_classification(TEXTS[0], top_k=1, function_to_apply="none")
    return same_ranking(pairs(found), [right])


@check(HUB, "text_classification at the server's own address")
def _() -> str:
    client = InferenceClient(base_url=f"http://{URL}/?model={TEXT_MODEL}")
    right = ranking(TEXT_MODEL, logits_of_texts(TEXTS)[1])
    return same_ranking(pairs(client.text_classification(TEXTS[1])), right)


@check(HUB, "image_classification of bytes")
def _() -> str:
    right = ranking(IMAGE_MODEL, logits_of_pixels(PIXELS)[0])[:5]
    return same_ranking(pairs(hub(IMAGE_MODEL).image_classification(png(PIXELS[0]))), right)


@check(HUB, "image_classification of a file, top_k")
def _() -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "image.png")
        path.write_bytes(png(PIXELS[1]))
        found = hub(IMAGE_MODEL).image_classification(path, top_k=2)
    return same_ranking(pairs(found), ranking(IMAGE_MODEL, logits_of_pixels(PIXELS)[1])[:2])


@check(HUB, "a task that is none of ours")
def _() -> str:
    return refused(lambda: hub(TEXT_MODEL).fill_mask("a <mask> film", targets=["fine"]), "'targets'")


openai = OpenAI(base_url=f"http://{URL}/v1", api_key="none")


@check("openai", "models.list and models.retrieve")
def _() -> str:
    names = [model.id for model in openai.models.list()]
    assert {TEXT_MODEL, IMAGE_MODEL} <= set(names)
    assert openai.models.retrieve(TEXT_MODEL).owned_by == "fewshard"
    return f"{len(names)} models"


@check("openai", "a model that is not served; embeddings")
def _() -> str:
    try:
        openai.models.retrieve("nobody")
    except NotFoundError as error:
        told = str(error)
    assert "there are" in told
    return refused(lambda: openai.embeddings.create(model=TEXT_MODEL, input="a"), "404")


def perf_analyzer(*options: str) -> str:
    program = os.environ.get("PERF_ANALYZER") or shutil.which("perf_analyzer")
    assert program, "perf_analyzer is not installed"
    windows = ("--measurement-mode", "count_windows", "--measurement-request-count", "20", "-s", "999")
    command = [program, "--concurrency-range", "2", "--max-trials", "3", *windows, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    assert done.returncode == 0, " | ".join(lines[-4:])
    return next(line for line in lines if line.startswith("Throughput"))


for protocol, address in (("http", URL), ("grpc", GRPC)):

    @check("perf_analyzer", f"texts over {protocol}")
    def _(protocol: str = protocol, address: str = address) -> str:
        data = {"data": [{"text": [text]} for text in TEXTS]}
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(data, file)
            file.flush()
            options = ("--shape", "text:1", "--input-data", file.name)
            return perf_analyzer("-m", TEXT_MODEL, "-i", protocol, "-u", address, *options)

    @check("perf_analyzer", f"images over {protocol}, batches of 4")
    def _(protocol: str = protocol, address: str = address) -> str:
        options = ("-b", "4", "--shape", "image:32,32,3")
        return perf_analyzer("-m", IMAGE_MODEL, "-i", protocol, "-u", address, *options)


@check("grpc_health", "Check, Watch")
def _() -> str:
    stub = health_pb2_grpc.HealthStub(grpc.insecure_channel(GRPC))
    for service in ("", "inference.GRPCInferenceService"):
        assert stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10).status == 1
    first = next(stub.Watch(health_pb2.HealthCheckRequest(), timeout=10))
    assert first.status == 1
    return "SERVING"


@check("grpc_reflection", "services and their methods")
def _() -> str:
    database = ProtoReflectionDescriptorDatabase(grpc.insecure_channel(GRPC))
    services = database.get_services()
    file = database.FindFileContainingSymbol("inference.GRPCInferenceService")
    return f"{len(services)} services, {len(file.service[0].method)} methods of inference"


def curl(path: str, *options: str, body: bytes = b"") -> tuple[int, Any]:
    command = ["curl", "-sS", "-o", "-", "-w", "\n%{http_code}", *options, f"http://{URL}{path}"]
    done = subprocess.run(command, input=body, capture_output=True, timeout=60, check=True)
    text, _, status = done.stdout.decode().rpartition("\n")
    return int(status), json.loads(text) if text else None


CLASSIFY = f"/v2/models/{TEXT_MODEL}/classify"
BODY = json.dumps({"inputs": TEXTS[0]}).encode()
FORMS: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "its own Content-Type": (BODY, ()),
    "chunked": (BODY, ("-H", "Transfer-Encoding: chunked", "-H", "Content-Type: application/json")),
    "HTTP/2 without TLS (prior knowledge)": (BODY, ("--http2-prior-knowledge",)),
    "HTTP/2 without TLS (upgrade)": (BODY, ("--http2",)),
    "HTTP/1.0": (BODY, ("--http1.0",)),
    "Expect: 100-continue": (BODY, ("-H", "Expect: 100-continue", "--expect100-timeout", "20")),
    "gzip": (gzip.compress(BODY), ("-H", "Content-Encoding: gzip")),
    "gzip of two members": (
        gzip.compress(BODY[:9]) + gzip.compress(BODY[9:]),
        ("-H", "Content-Encoding: gzip"),
    ),
    "gzip, chunked": (
        gzip.compress(BODY),
        ("-H", "Content-Encoding: gzip", "-H", "Transfer-Encoding: chunked"),
    ),
    "--compressed": (BODY, ("--compressed",)),
}


def ranked(predictions: Any) -> list[tuple[str, float]]:
    return [(each["label"], each["score"]) for each in predictions]


for form, (body, options) in FORMS.items():

    @check("curl", form)
    def _(body: bytes = body, options: tuple[str, ...] = options) -> str:
        status, answer = curl(CLASSIFY, *options, "--data-binary", "@-", body=body)
        assert status == 200, (status, answer)
        right = ranking(TEXT_MODEL, logits_of_texts(TEXTS[:1])[0])
        return same_ranking(ranked(answer["predictions"][0]), right)


for kind in ("Content-Type:", "Content-Type: application/octet-stream", "Content-Type: image/png"):

    @check("curl", f"an image with {kind} {'none' if kind.endswith(':') else ''}".strip())
    def _(kind: str = kind) -> str:
        path = f"/v2/models/{IMAGE_MODEL}/classify"
        status, answer = curl(path, "-H", kind, "--data-binary", "@-", body=png(PIXELS[0]))
        assert status == 200, (status, answer)
        right = ranking(IMAGE_MODEL, logits_of_pixels(PIXELS[:1])[0])
        return same_ranking(ranked(answer["predictions"][0]), right)


@check("curl", "zstd")
def _() -> str:
    status, answer = curl(CLASSIFY, "-H", "Content-Encoding: zstd", "--data-binary", "@-", body=BODY)
    assert (status, answer["code"]) == (415, "unsupported_media")
    return f"{status}: {answer['error']}"


@check("curl", "5 MB of texts at /classify, /predict, /v1/classify")
def _() -> str:
    texts = ["a fine film " + " " * 950_000] * 5
    bodies = {
        "/classify": {"model": TEXT_MODEL, "inputs": texts},
        "/predict": {"model": TEXT_MODEL, "inputs": [[text] for text in texts]},
        "/v1/classify": {"model": TEXT_MODEL, "input": texts, "truncate_prompt_tokens": -1},
    }
    for path, body in bodies.items():
        status, answer = curl(path, "--data-binary", "@-", body=json.dumps(body).encode())
        assert status == 200, (path, status, str(answer)[:200])
    return "answered"


@check("curl", "a preflight request of a page (CORS)")
def _() -> str:
    page = ("-H", "Origin: https://app.example", "-H", "Access-Control-Request-Method: POST")
    command = ["curl", "-sS", "-i", "-X", "OPTIONS", *page, f"http://{URL}{CLASSIFY}"]
    head = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.lower()
    assert head.startswith("http/1.1 200"), head
    assert "access-control-allow-origin: https://app.example" in head, head
    return "allowed"


@check("curl", "SageMaker's /ping and /invocations")
def _() -> str:
    assert curl("/ping")[0] == 200
    body = json.dumps({"model": TEXT_MODEL, "inputs": TEXTS[0]}).encode()
    status, answer = curl("/invocations", "--data-binary", "@-", body=body)
    assert status == 200, (status, answer)
    return same_ranking(ranked(answer), ranking(TEXT_MODEL, logits_of_texts(TEXTS[:1])[0]))


run_all()
