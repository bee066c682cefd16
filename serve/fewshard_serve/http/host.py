"""The ASGI application of a replica: all paths below `/v2/models`. `rayserve` mounts it in each replica."""

from collections.abc import Sequence
from typing import Any

from fewshard_serve.core import ANYBODY
from fewshard_serve.errors import NotFound, Overloaded
from fewshard_serve.http.asgi import App
from fewshard_serve.http.backpressure import REFUSED_HEADER, refused_before, room_header
from fewshard_serve.http.request import MODELS, Request
from fewshard_serve.http.responses import Response
from fewshard_serve.http.routes import sheddable_requests
from fewshard_serve.http.routing import Route, model_in
from fewshard_serve.http.service import HostContext, HostService, ServedModel
from fewshard_serve.protocol.limits import Limits


class HostApp(App[HostService]):
    """Serves the models of one replica."""

    def context(self, limits: Limits, routes: Sequence[Route]) -> HostContext:
        self._sheddable = [request.protocol for request in sheddable_requests(routes)]
        return HostContext(self._service, limits)

    def serves(self, route: Route) -> bool:
        return route.is_of_model

    async def missing(self, _: Any, request: Request) -> Response:
        raise NotFound(
            f"there is no {request.path}; models are at {MODELS}/<name>, their list at POST "
            "/v2/repository/index, and what each of them has at GET /docs"
        )

    async def _answer(self, request: Request) -> Response:
        if not self._access.is_behind_haproxy:
            return await super()._answer(request)
        model = self._service.models().get(model_in(request.path))
        if model is None or model.room is None:
            return await super()._answer(request)
        self._count_refused(request, model)
        response = await super()._answer(request)
        has_token = self._access.tokens is not None and request.caller is not ANYBODY
        request.answer_headers = (room_header(model.room, has_token),)
        return response

    def _count_refused(self, request: Request, model: ServedModel) -> None:
        """Count the requests for the model that HAProxy has refused since it last passed one on."""
        refused = list(refused_before(request.headers.get(REFUSED_HEADER), self._sheddable))
        for protocol in refused:
            model.stats.add_failure(0.0)
            self._on_request(model.info.name, protocol, Overloaded.code, 0.0)
        if refused and model.room is not None:
            model.room.note_refusals()
