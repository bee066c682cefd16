"""The OpenAPI 3.1 document of all endpoints, built from the pydantic models; the gateway serves it."""

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from fewshard_serve import __version__
from fewshard_serve.errors import ServeError
from fewshard_serve.http.middleware import is_open
from fewshard_serve.http.responses import HTTP_STATUS
from fewshard_serve.protocol import classify, explain, placement, schemas, tei, vllm
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.tasks import TASKS

_Named = list[tuple[type[BaseModel], JsonSchemaMode]]

_REF = "#/components/schemas/{model}"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One line of the API. `takes` and `gives` are JSON bodies; `errors` are statuses beside 500.

    `predicts` marks those that classify items: they share errors and a deadline header, and those that give a
    `ClassifyResponse` also take the bytes of an image.
    """

    method: str
    path: str
    summary: str
    takes: type[BaseModel] | None = None
    gives: type[BaseModel] | None = None
    example: dict[str, Any] | None = None
    answer: dict[str, Any] | None = None
    errors: tuple[int, ...] = ()
    content_type: str = "application/json"
    predicts: bool = False
    refuses: type[BaseModel] = schemas.ErrorBody

    @property
    def takes_image(self) -> bool:
        return self.gives is classify.ClassifyResponse


_PREDICTION_ERRORS = (400, 404, 408, 413, 415, 422, 429, 499, 503)
_TIMEOUT = {
    "name": "X-Request-Timeout-Ms",
    "in": "header",
    "description": "answer 408 after so many milliseconds",
    "schema": {"type": "integer", "minimum": 1},
}
_PRIORITY = {
    "name": "X-Request-Priority",
    "in": "header",
    "description": "high goes ahead of others; where tokens are asked for it needs the scope priority",
    "schema": {"enum": ["high", "normal"]},
}
_IMAGE_QUERY = [
    {"name": "top_k", "in": "query", "schema": {"type": "integer", "minimum": 1}},
    {"name": "raw_scores", "in": "query", "schema": {"type": "boolean"}},
]
_IMAGE_MODEL = {"name": "model", "in": "query", "schema": {"type": "string"}}
_TEXTS = {"name": "text", "datatype": "BYTES", "shape": [2], "data": ["a fine film", "two hours I want back"]}

ENDPOINTS = (
    Endpoint(
        "post",
        "/v2/models/{model}/classify",
        "Classify texts or images: labels sorted by score",
        classify.ClassifyRequest,
        classify.ClassifyResponse,
        {"inputs": ["a fine film", "two hours I want back"], "top_k": 1},
        {
            "model": "{model}",
            "predictions": [[{"label": "positive", "score": 0.98}], [{"label": "negative", "score": 0.93}]],
            "usage": {"items": 2, "tokens": 12},
            "timings_ms": {"queue": 0.2, "preprocess": 0.4, "infer": 2.9},
        },
        predicts=True,
    ),
    Endpoint(
        "post",
        "/classify",
        "The same, with the model named in the body",
        classify.GatewayClassifyRequest,
        classify.ClassifyResponse,
        {"model": "{model}", "inputs": "a fine film"},
        predicts=True,
    ),
    Endpoint(
        "post",
        "/predict",
        "The same as text-embeddings-inference has it; a server of one model needs no model named",
        tei.PredictRequest,
        tei.PredictResponse,
        {"model": "{model}", "inputs": [["a fine film"], ["a question", "its answer"]]},
        predicts=True,
        refuses=tei.PredictErrorBody,
    ),
    Endpoint(
        "post",
        "/v2/models/{model}/predict",
        "The same of one model: its clients take http://host:8000/v2/models/{model} as their server",
        tei.PredictRequest,
        tei.PredictResponse,
        {"inputs": "a fine film", "raw_scores": True},
        predicts=True,
        refuses=tei.PredictErrorBody,
    ),
    Endpoint(
        "post",
        "/v1/classify",
        "The same as vLLM has it",
        vllm.VllmClassifyRequest,
        vllm.VllmClassifyResponse,
        {"model": "{model}", "input": ["a fine film", "two hours I want back"]},
        predicts=True,
        refuses=vllm.VllmErrorBody,
    ),
    Endpoint(
        "post",
        "/v2/models/{model}/infer",
        "Open Inference Protocol V2, JSON or binary tensors; tritonclient speaks it",
        schemas.InferRequestBody,
        schemas.InferResponseBody,
        {"inputs": [_TEXTS], "outputs": [{"name": "scores"}, {"name": "label"}]},
        {
            "model_name": "{model}",
            "model_version": "1",
            "parameters": {"tokens": 12, "queue_ms": 0.2, "preprocess_ms": 0.4, "infer_ms": 2.9},
            "outputs": [
                {"name": "scores", "datatype": "FP32", "shape": [2, 2], "data": [0.02, 0.98, 0.93, 0.07]},
                {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["positive", "negative"]},
            ],
        },
        predicts=True,
    ),
    Endpoint(
        "post",
        "/v2/models/{model}/explain",
        "Which words carried an answer: the text is classified again without each of them",
        explain.ExplainRequest,
        explain.ExplainResponse,
        {"inputs": "a fine film"},
        {
            "model": "{model}",
            "label": "positive",
            "score": 0.98,
            "margin": 3.9,
            "words": [
                {"word": "a", "start": 0, "end": 1, "effect": 0.1},
                {"word": "fine", "start": 2, "end": 6, "effect": 4.2},
                {"word": "film", "start": 7, "end": 11, "effect": -0.3},
            ],
            "usage": {"items": 4, "tokens": 17},
            "timings_ms": {"queue": 0.1, "preprocess": 0.5, "infer": 4.0},
        },
        predicts=True,
    ),
    Endpoint(
        "get",
        "/v2/models/{model}",
        "What the model takes and gives",
        gives=schemas.ModelMetadata,
        errors=(404,),
    ),
    Endpoint("get", "/v2/models/{model}/ready", "Whether the model takes requests", errors=(404, 503)),
    Endpoint("get", "/v2/models/{model}/config", "The model, its limits and its card", errors=(404,)),
    Endpoint(
        "get",
        "/v2/models/{model}/stats",
        "Counts and times over all replicas, in Triton's shape",
        errors=(404,),
    ),
    Endpoint("get", "/v2/models/stats", "The same for every model of a shared host"),
    Endpoint(
        "get",
        "/v2/models/{model}/experts",
        "Routing of a mixture of experts: tokens by layer and expert",
        errors=(404,),
    ),
    Endpoint(
        "post",
        "/v2/models/{model}/placement",
        "What another placement of a sharded model's experts would cost; with apply true, have it",
        takes=placement.PlacementRequest,
        gives=placement.PlacementChange,
        example={"placement": "round_robin", "apply": False},
        answer={"moves": 12, "bytes": 3939840, "applied": False, "replicas": 1},
        errors=(400, 404, 503),
    ),
    Endpoint(
        "get",
        "/v2/models/{model}/metrics",
        "Prometheus metrics of the replica that answers",
        errors=(404,),
        content_type="text/plain",
    ),
    Endpoint("get", "/v2", "Name, version and extensions of the server", gives=schemas.ServerMetadata),
    Endpoint("get", "/v2/health/live", "Whether the server runs"),
    Endpoint("get", "/v2/health/ready", "Whether every model takes requests", errors=(503,)),
    Endpoint("post", "/v2/repository/index", "All models and their state", errors=(400,), example={}),
    Endpoint("get", "/metrics", "Prometheus metrics of every replica", content_type="text/plain"),
    Endpoint("get", "/metrics/gateway", "Prometheus metrics of the gateway alone", content_type="text/plain"),
    Endpoint(
        "get",
        "/metrics/targets",
        "Each replica's own metrics, for Prometheus' HTTP service discovery",
        errors=(404,),
    ),
    Endpoint("post", "/v2/tokens/reload", "Read the file of tokens again", errors=(400, 404), example={}),
)


def openapi_document(limits: Limits) -> dict[str, Any]:
    """The whole document as data."""
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in ENDPOINTS:
        paths.setdefault(endpoint.path, {})[endpoint.method] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Fewshard", "version": __version__, "description": _description(limits)},
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}, {}],
    }


def _description(limits: Limits) -> str:
    return (
        "Serves classifiers, dense and sparse. Each answer but 200 is {error, code}. "
        "Every answer carries X-Request-Id, the client's own where it sent one. "
        "X-Request-Timeout-Ms sets a deadline; Content-Encoding and Accept-Encoding may be gzip or deflate. "
        f"One request may have {limits.max_items:,} items, {limits.max_body_bytes >> 20} MiB, "
        f"{limits.max_text_bytes:,} bytes a text and {limits.max_image_pixels:,} pixels an image."
    )


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    operation: dict[str, Any] = {"summary": endpoint.summary, "operationId": _operation_id(endpoint)}
    operation["parameters"] = _parameters(endpoint)
    if endpoint.method == "post":
        operation["requestBody"] = {"required": endpoint.takes is not None, "content": _request(endpoint)}
    operation["responses"] = {"200": _answer(endpoint)} | _error_answers(endpoint)
    return operation


def _parameters(endpoint: Endpoint) -> list[dict[str, Any]]:
    in_path = "{model}" in endpoint.path
    return [
        *(
            [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
            if in_path
            else []
        ),
        *([_TIMEOUT, _PRIORITY] if endpoint.predicts else []),
        *(_IMAGE_QUERY if endpoint.takes_image else []),
        *([_IMAGE_MODEL] if endpoint.takes_image and not in_path else []),
    ]


def _operation_id(endpoint: Endpoint) -> str:
    words = endpoint.path.replace("{model}", "model").strip("/").split("/")
    return "_".join([endpoint.method, *words])


def _request(endpoint: Endpoint) -> dict[str, Any]:
    body: dict[str, Any] = {"example": endpoint.example}
    if endpoint.takes is not None:
        body["schema"] = {"$ref": _REF.format(model=endpoint.takes.__name__)}
    if not endpoint.takes_image:
        return {"application/json": body}
    file = {"schema": {"type": "string", "format": "binary"}}
    return {"application/json": body, **{task.media_range: file for task in TASKS if task.media_range}}


def _answer(endpoint: Endpoint) -> dict[str, Any]:
    schema = {"$ref": _REF.format(model=endpoint.gives.__name__)} if endpoint.gives is not None else {}
    body: dict[str, Any] = {"schema": schema}
    if endpoint.answer is not None:
        body["example"] = endpoint.answer
    return {"description": "OK", "content": {endpoint.content_type: body}}


def _error_answers(endpoint: Endpoint) -> dict[str, Any]:
    statuses = _PREDICTION_ERRORS if endpoint.predicts else endpoint.errors
    statuses += () if is_open(endpoint.path) else (401, 403)
    schema = {"$ref": _REF.format(model=endpoint.refuses.__name__)}
    return {
        str(status): {"description": _codes(status), "content": {"application/json": {"schema": schema}}}
        for status in (*sorted(statuses), 500)
    }


def _codes(status: int) -> str:
    kinds: list[type[ServeError]] = [kind for kind, its_status in HTTP_STATUS.items() if its_status == status]
    return ", ".join(kind.code for kind in kinds)


def _schemas() -> dict[str, Any]:
    takes: _Named = [(endpoint.takes, "validation") for endpoint in ENDPOINTS if endpoint.takes is not None]
    gives: _Named = [
        (endpoint.gives, "serialization") for endpoint in ENDPOINTS if endpoint.gives is not None
    ]
    named: _Named = [
        *takes,
        *gives,
        *((endpoint.refuses, "serialization") for endpoint in ENDPOINTS),
        (schemas.IndexEntry, "serialization"),
    ]
    _, document = models_json_schema(list(dict.fromkeys(named)), ref_template=_REF)
    definitions: dict[str, Any] = document["$defs"]
    return definitions
