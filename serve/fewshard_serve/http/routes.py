"""The list of all endpoints of the HTTP API.

Routing, required scopes, metric labels, the OpenAPI document, the names that models must not have, and the
requests that HAProxy may refuse are derived from it.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from fewshard_serve.http import model_handlers as models
from fewshard_serve.http import server_handlers as server
from fewshard_serve.http.prediction_routes import PREDICTIONS
from fewshard_serve.http.request import MODELS
from fewshard_serve.http.responses import vllm_error_response
from fewshard_serve.http.routing import MODEL, VERSION, Route
from fewshard_serve.protocol import placement, schemas, tei, vllm

CHANGE_S = 1000
"""A change of models is given up after 15 minutes, and then says so."""

ROUTES = (
    *PREDICTIONS,
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
        "GET",
        "/ping",
        server.ready,
        scope="open",
        summary="The same where SageMaker asks for it",
        errors=(503,),
    ),
    Route(
        "GET",
        "/health",
        server.ready,
        scope="open",
        summary="The same where text-embeddings-inference and vLLM have it",
        errors=(503,),
    ),
    Route(
        "GET",
        "/info",
        server.info,
        summary="One model as text-embeddings-inference describes it: ?model=<name> where there are several",
        gives=tei.ModelInfoBody,
        errors=(400, 404, 503),
    ),
    Route("GET", "/version", server.version, summary="The version, where vLLM has it"),
    Route(
        "GET",
        "/v1/models",
        server.openai_models,
        summary="The models that take requests, as OpenAI's clients list them",
        gives=vllm.OpenAiModels,
    ),
    Route(
        "GET",
        "/v1/models/{model}",
        server.openai_model,
        encode_error=vllm_error_response,
        summary="One model as OpenAI's clients see it",
        gives=vllm.OpenAiModel,
        refuses=vllm.VllmErrorBody,
        errors=(404, 503),
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
        "POST",
        "/v2/repository/models/{model}/load",
        server.load,
        scope="admin",
        answer_within_s=CHANGE_S,
        summary="Load a model as the configuration describes it now, or again if it has changed",
        gives=schemas.ModelState,
        example={},
        answer={"name": "{model}", "state": "READY"},
        errors=(400, 404, 409, 503),
    ),
    Route(
        "POST",
        "/v2/repository/models/{model}/unload",
        server.unload,
        scope="admin",
        answer_within_s=CHANGE_S,
        summary="Unload a model once it has answered what it had accepted",
        gives=schemas.ModelState,
        example={},
        answer={"name": "{model}", "state": "UNAVAILABLE"},
        errors=(400, 404, 409, 503),
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
    Route(
        "GET",
        "/",
        server.home,
        scope=server.home_scope,
        summary="The console; the models and their state for clients that accept JSON alone",
        content_type="text/html",
    ),
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
