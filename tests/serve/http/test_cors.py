"""Pages of other origins may call if, and only if, the configuration names their origin."""

from collections.abc import Callable

import httpx
import pytest
from pydantic import TypeAdapter, ValidationError

from fewshard_serve.auth import hash_of
from fewshard_serve.config import FewshardConfig
from fewshard_serve.http.cors import CorsSettings
from fewshard_serve.http.host import HostApp
from fewshard_serve.http.middleware import AccessMiddleware, AccessSettings
from fewshard_serve.rayserve.deployment_plan import door_settings
from local_service import LocalService

Call = Callable[..., httpx.Response]

PAGE = "https://app.example"
ASKING = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}
PATH = "/v2/models/sst2/classify"


@pytest.fixture
def app(text_model, tmp_path):
    tokens = tmp_path / "tokens.yaml"
    tokens.write_text(f"tokens:\n  - {{name: page, sha256: {hash_of('secret').hex()}, scopes: [predict]}}\n")

    def build(*origins: str) -> HostApp:
        cors = CorsSettings(origins) if origins else None
        doors = AccessMiddleware(AccessSettings(tokens_file=str(tokens), cors=cors))
        return HostApp(LocalService({"sst2": text_model}), doors=doors)

    return build


def headers_of(answer: httpx.Response) -> set[str]:
    return {name for name in answer.headers if name.startswith("access-control-")}


@pytest.mark.parametrize("origins", [(PAGE,), ("https://other.example", PAGE), ("*",)])
def test_a_preflight_request_needs_no_token(app, call: Call, origins: tuple[str, ...]) -> None:
    answer = call(app(*origins), "OPTIONS", PATH, headers=ASKING)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert answer.headers["access-control-allow-headers"] == "authorization,content-type"
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert answer.headers["vary"] == "origin"


def test_answers_and_errors_can_be_read_by_the_page(app, call: Call) -> None:
    page = {"Origin": PAGE, "Authorization": "Bearer secret"}
    answer = call(app(PAGE), "POST", PATH, json={"inputs": "a"}, headers=page)
    refused = call(app(PAGE), "POST", PATH, json={"inputs": "a"}, headers={"Origin": PAGE})
    assert (answer.status_code, refused.status_code) == (200, 401)
    for each in (answer, refused):
        assert each.headers["access-control-allow-origin"] == PAGE
        assert each.headers["access-control-expose-headers"] == "*"


@pytest.mark.parametrize("origins", [(), ("https://other.example",)])
def test_other_pages_get_no_such_header(app, call: Call, origins: tuple[str, ...]) -> None:
    preflight = call(app(*origins), "OPTIONS", PATH, headers=ASKING)
    assert preflight.status_code == 401, "it is a request like others"
    page = {"Origin": PAGE, "Authorization": "Bearer secret"}
    answer = call(app(*origins), "POST", PATH, json={"inputs": "a"}, headers=page)
    assert answer.status_code == 200
    assert headers_of(preflight) == headers_of(answer) == set()


def test_other_options_requests_are_answered_as_before(app, call: Call) -> None:
    headers = {"Origin": PAGE, "Authorization": "Bearer secret"}
    assert call(app(PAGE), "OPTIONS", PATH, headers=headers).status_code == 405


@pytest.mark.parametrize("origin", ["app.example", "https://app.example/", "https://*.example", ""])
def test_what_is_no_origin_is_refused_in_the_configuration(origin: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(CorsSettings).validate_python({"origins": [origin]})


def test_it_is_off_unless_configured() -> None:
    models = [{"name": "m", "path": "x"}]
    assert door_settings(FewshardConfig.model_validate({"models": models})).cors is None
    config = FewshardConfig.model_validate({"models": models, "cors": {"origins": [PAGE]}})
    assert door_settings(config).cors == CorsSettings((PAGE,))
    with pytest.raises(ValidationError):
        FewshardConfig.model_validate({"models": models, "cors": {"origins": []}})
