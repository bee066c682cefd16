"""The list of all endpoints of the HTTP API.

Routing, required scopes, metric labels, the OpenAPI document, the names that models must not have, and the
requests that HAProxy may refuse are derived from it.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from fewshard_serve.http import model_handlers as models
from fewshard_serve.http import prediction_handlers as predictions
from fewshard_serve.http import server_handlers as server
from fewshard_serve.http.prediction_handlers import predict_by_name, predict_with_model
from fewshard_serve.http.responses import tei_error_response, vllm_error_response
from fewshard_serve.http.routing import MODEL, MODELS, VERSION, HeaderProtocol, Route
from fewshard_serve.protocol import classify, explain, placement, schemas, tei, vllm

_TEXTS = {"name": "text", "datatype": "BYTES", "shape": [2], "data": ["a fine film", "two hours I want back"]}

ROUTES = (
    Route(
        "POST",
        f"{MODEL}/classify",
        predict_with_model(predictions.read_classify),
        scope="predict",
        protocol="classify",
        is_sheddable=True,
        summary="Classify texts or images: labels sorted by score",
        takes=classify.ClassifyRequest,
        gives=classify.ClassifyResponse,
        takes_image=True,
        example={"inputs": ["a fine film", "two hours I want back"], "top_k": 1},
        answer={
            "model": "{model}",
            "predictions": [[{"label": "positive", "score": 0.98}], [{"label": "negative", "score": 0.93}]],
            "usage": {"items": 2, "tokens": 12},
            "timings_ms": {"queue": 0.2, "preprocess": 0.4, "infer": 2.9},
        },
    ),
    Route(
        "POST",
        "/classify",
        predict_by_name(predictions.read_named_classify),
        scope="predict",
        protocol="classify",
        summary="The same, with the model named in the body",
        takes=classify.GatewayClassifyRequest,
        gives=classify.ClassifyResponse,
        takes_image=True,
        example={"model": "{model}", "inputs": "a fine film"},
    ),
    Route(
        "POST",
        "/predict",
        predict_by_name(predictions.read_tei),
        scope="predict",
        protocol="tei",
        encode_error=tei_error_response,
        summary="The same as text-embeddings-inference has it; a server of one model needs no model named",
        takes=tei.PredictRequest,
        gives=tei.PredictResponse,
        refuses=tei.PredictErrorBody,
        example={"model": "{model}", "inputs": [["a fine film"], ["a question", "its answer"]]},
    ),
    Route(
        "POST",
        f"{MODEL}/predict",
        predict_with_model(predictions.read_tei),
        scope="predict",
        protocol="tei",
        encode_error=tei_error_response,
        summary="The same of one model: its clients take http://host:8000/v2/models/{model} as their server",
        takes=tei.PredictRequest,
        gives=tei.PredictResponse,
        refuses=tei.PredictErrorBody,
        example={"inputs": "a fine film", "raw_scores": True},
    ),
    Route(
        "POST",
        "/v1/classify",
        predict_by_name(predictions.read_vllm),
        scope="predict",
        protocol="vllm",
        encode_error=vllm_error_response,
        summary="The same as vLLM has it",
        takes=vllm.VllmClassifyRequest,
        gives=vllm.VllmClassifyResponse,
        refuses=vllm.VllmErrorBody,
        example={"model": "{model}", "input": ["a fine film", "two hours I want back"]},
    ),
    Route(
        "POST",
        f"{MODEL}/infer",
        predict_with_model(predictions.read_infer),
        scope="predict",
        protocol=HeaderProtocol("inference-header-content-length", present="v2_binary", absent="v2_json"),
        is_sheddable=True,
        summary="Open Inference Protocol V2, JSON or binary tensors; tritonclient speaks it",
        takes=schemas.InferRequestBody,
        gives=schemas.InferResponseBody,
        example={"inputs": [_TEXTS], "outputs": [{"name": "scores"}, {"name": "label"}]},
        answer={
            "model_name": "{model}",
            "model_version": "1",
            "parameters": {"tokens": 12, "queue_ms": 0.2, "preprocess_ms": 0.4, "infer_ms": 2.9},
            "outputs": [
                {"name": "scores", "datatype": "FP32", "shape": [2, 2], "data": [0.02, 0.98, 0.93, 0.07]},
                {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["positive", "negative"]},
            ],
        },
    ),
    Route(
        "POST",
        f"{MODEL}/explain",
        predict_with_model(predictions.read_explain),
        scope="predict",
        protocol="explain",
        summary="Which words carried an answer: the text is classified again without each of them",
        takes=explain.ExplainRequest,
        gives=explain.ExplainResponse,
        example={"inputs": "a fine film"},
        answer={
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
    ),
    Route(
        "GET",
        MODEL,
        models.metadata,
        summary="What the model takes and gives",
        gives=schemas.ModelMetadata,
        errors=(404,),
    ),
    Route(
        "GET",
        f"{MODEL}/ready",
        models.ready,
        scope="open",
        summary="Whether the model takes requests",
        errors=(404, 503),
    ),
    Route(
        "GET",
        f"{MODEL}/config",
        models.config,
        summary="The model, its limits and its card",
        errors=(404,),
    ),
    Route(
        "GET",
        f"{MODEL}/stats",
        models.stats,
        summary="Counts and times over all replicas, in Triton's shape",
        errors=(404,),
    ),
    Route(
        "GET",
        f"{MODELS}/stats",
        models.stats_of_all,
        summary="The same for every model of a shared host",
    ),
    Route(
        "GET",
        f"{MODEL}/experts",
        models.experts,
        summary="Routing of a mixture of experts: tokens by layer and expert",
        errors=(404,),
    ),
    Route(
        "POST",
        f"{MODEL}/placement",
        models.placement,
        scope="admin",
        answer_within_s=120,  # it answers after the experts have been loaded
        summary="What another placement of a sharded model's experts would cost; with apply true, have it",
        takes=placement.PlacementRequest,
        gives=placement.PlacementChange,
        example={"placement": "round_robin", "apply": False},
        answer={"moves": 12, "bytes": 3939840, "applied": False, "replicas": 1},
        errors=(400, 404, 503),
    ),
    Route(
        "GET",
        f"{MODEL}/metrics",
        models.metrics,
        summary="Prometheus metrics of the replica that answers",
        errors=(404,),
        content_type="text/plain",
    ),
    Route("GET", f"{MODELS}/metrics", models.metrics_of_replica),
    Route(
        "GET",
        "/v2",
        server.metadata,
        summary="Name, version and extensions of the server",
        gives=schemas.ServerMetadata,
    ),
    Route("GET", "/v2/health/live", server.live, scope="open", summary="Whether the server runs"),
    Route(
        "GET",
        "/v2/health/ready",
        server.ready,
        scope="open",
        summary="Whether every model takes requests",
        errors=(503,),
    ),
    Route(
        "POST",
        "/v2/repository/index",
        server.index,
        summary="All models and their state",
        errors=(400,),
        example={},
    ),
    Route(
        "GET",
        "/metrics",
        server.metrics,
        summary="Prometheus metrics of every replica",
        content_type="text/plain",
    ),
    Route(
        "GET",
        "/metrics/gateway",
        server.own_metrics,
        summary="Prometheus metrics of the gateway alone",
        content_type="text/plain",
    ),
    Route(
        "GET",
        "/metrics/targets",
        server.metrics_targets,
        summary="Each replica's own metrics, for Prometheus' HTTP service discovery",
        errors=(404,),
    ),
    Route(
        "POST",
        "/v2/tokens/reload",
        server.reload_tokens,
        scope="admin",
        summary="Read the file of tokens again",
        errors=(400, 404),
        example={},
    ),
    Route("GET", "/", server.home, scope=server.home_scope),
    Route("GET", "/console/{file}", server.console, scope="open"),
    Route("GET", "/openapi.json", server.openapi, scope="open"),
    Route("GET", "/docs", server.docs, scope="open"),
    Route("GET", "/docs/{file}", server.docs, scope="open"),
)


def reserved_names(routes: Iterable[Route] = ROUTES) -> frozenset[str]:
    """The words that appear in paths of models. No model may have such a name.

    `index` is reserved for a future list of models at `/v2/models/index`.
    """
    below = [route.path.removeprefix(MODELS) for route in routes if route.is_of_model]
    words = {word for path in (*below, VERSION, "/index") for word in path.split("/") if word}
    return frozenset(word for word in words if not word.startswith("{"))


class SheddableRequest(NamedTuple):
    """The requests with one metric label that HAProxy may refuse.

    protocol: the metric label.
    header: its presence selects requests of the route; None selects all.
    has_header: whether the selected requests have the header, or lack it.
    """

    protocol: str
    route: Route
    header: str | None = None
    has_header: bool = False


def sheddable_requests(routes: Iterable[Route] = ROUTES) -> Iterator[SheddableRequest]:
    """Yield the requests that HAProxy may refuse, in the order in which it counts its refusals."""
    for route in routes:
        label = route.protocol
        if not route.is_sheddable or label is None:
            continue
        if isinstance(label, str):
            yield SheddableRequest(label, route)
        else:
            yield SheddableRequest(label.absent, route, label.header, has_header=False)
            yield SheddableRequest(label.present, route, label.header, has_header=True)
