"""The ASGI application at `/`, for the server as a whole. `rayserve` mounts it beside those of the models."""

from collections.abc import Sequence
from typing import Any

from pydantic_core import to_json

from fewshard_serve.errors import NotFound
from fewshard_serve.http.asgi import App
from fewshard_serve.http.openapi import openapi_document
from fewshard_serve.http.request import MODELS, Request
from fewshard_serve.http.responses import Response
from fewshard_serve.http.routing import Route, model_in
from fewshard_serve.http.server_handlers import stats_of_all
from fewshard_serve.http.service import GatewayContext, GatewayService, why_not
from fewshard_serve.protocol.limits import Limits


class GatewayApp(App[GatewayService]):
    """Serves the gateway's routes. It knows the models' routes too, to check scopes and count errors."""

    def context(self, limits: Limits, routes: Sequence[Route]) -> GatewayContext:
        document = to_json(openapi_document(limits, routes))
        return GatewayContext(self._service, limits, self._access.tokens, document)

    async def missing(self, _: Any, request: Request) -> Response:
        raise NotFound(f"there is no {request.path}; GET /docs lists what there is")

    async def _handle(self, request: Request, route: Route) -> Response:
        if route.is_of_model:  # only if no replica's application is mounted for the model
            if request.path.rstrip("/") == f"{MODELS}/stats":
                return await stats_of_all(self._service)
            raise why_not(model_in(request.path), await self._service.model_index())
        return await super()._handle(request, route)
