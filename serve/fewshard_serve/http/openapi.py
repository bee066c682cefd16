"""The OpenAPI 3.1 document of all routes, built from their pydantic models; the gateway serves it."""

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from fewshard_serve import __version__
from fewshard_serve.errors import ServeError
from fewshard_serve.http.responses import HTTP_STATUS
from fewshard_serve.http.routes import ROUTES
from fewshard_serve.http.routing import Route
from fewshard_serve.protocol.limits import Limits
from fewshard_serve.protocol.schemas import IndexEntry
from fewshard_serve.protocol.tasks import TASKS

_Named = list[tuple[type[BaseModel], JsonSchemaMode]]

_REF = "#/components/schemas/{model}"


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


def openapi_document(limits: Limits, routes: Iterable[Route] = ROUTES) -> dict[str, Any]:
    """The whole document as data. Routes without a summary are left out."""
    documented = [route for route in routes if route.summary]
    paths: dict[str, dict[str, Any]] = {}
    for route in documented:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Fewshard", "version": __version__, "description": _description(limits)},
        "paths": paths,
        "components": {
            "schemas": _schemas(documented),
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


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {"summary": route.summary, "operationId": _operation_id(route)}
    operation["parameters"] = _parameters(route)
    if route.method == "POST":
        operation["requestBody"] = {"required": route.takes is not None, "content": _request(route)}
    operation["responses"] = {"200": _answer(route)} | _error_answers(route)
    return operation


def _parameters(route: Route) -> list[dict[str, Any]]:
    in_path = "{model}" in route.path
    return [
        *(
            [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
            if in_path
            else []
        ),
        *([_TIMEOUT, _PRIORITY] if route.protocol is not None else []),
        *(_IMAGE_QUERY if route.takes_image else []),
        *([_IMAGE_MODEL] if route.takes_image and not in_path else []),
    ]


def _operation_id(route: Route) -> str:
    words = route.path.replace("{model}", "model").strip("/").split("/")
    return "_".join([route.method.lower(), *words])


def _request(route: Route) -> dict[str, Any]:
    body: dict[str, Any] = {"example": route.example}
    if route.takes is not None:
        body["schema"] = {"$ref": _REF.format(model=route.takes.__name__)}
    if not route.takes_image:
        return {"application/json": body}
    file = {"schema": {"type": "string", "format": "binary"}}
    return {"application/json": body, **{task.media_range: file for task in TASKS if task.media_range}}


def _answer(route: Route) -> dict[str, Any]:
    schema = {"$ref": _REF.format(model=route.gives.__name__)} if route.gives is not None else {}
    body: dict[str, Any] = {"schema": schema}
    if route.answer is not None:
        body["example"] = route.answer
    return {"description": "OK", "content": {route.content_type: body}}


def _error_answers(route: Route) -> dict[str, Any]:
    statuses = _PREDICTION_ERRORS if route.protocol is not None else route.errors
    statuses += () if route.scope == "open" else (401, 403)
    schema = {"$ref": _REF.format(model=route.refuses.__name__)}
    return {
        str(status): {"description": _codes(status), "content": {"application/json": {"schema": schema}}}
        for status in (*sorted(statuses), 500)
    }


def _codes(status: int) -> str:
    kinds: list[type[ServeError]] = [kind for kind, its_status in HTTP_STATUS.items() if its_status == status]
    return ", ".join(kind.code for kind in kinds)


def _schemas(routes: Sequence[Route]) -> dict[str, Any]:
    takes: _Named = [(route.takes, "validation") for route in routes if route.takes is not None]
    gives: _Named = [(route.gives, "serialization") for route in routes if route.gives is not None]
    refuses: _Named = [(route.refuses, "serialization") for route in routes]
    named: _Named = [*takes, *gives, *refuses, (IndexEntry, "serialization")]
    _, document = models_json_schema(list(dict.fromkeys(named)), ref_template=_REF)
    definitions: dict[str, Any] = document["$defs"]
    return definitions
