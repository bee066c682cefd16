"""The files of Swagger UI at `/docs`: whole, as published, under a policy that lets nothing else in."""

import hashlib
import re
from collections.abc import Callable
from importlib.resources import files
from itertools import pairwise

import httpx
import pytest

from fewshard_serve.http.gateway import GatewayApp

Call = Callable[..., httpx.Response]

PUBLISHED = {
    "swagger-ui-bundle.js": "e6a898692f2d768e807c3ba4626068a69a2c5dd960dd6c76f3e4d3a3de180af2",
    "swagger-ui.css": "5ed08757e53da3e026d6cbecc61fe5d43585c9560b302d534ad56692519a273d",
}
"""SHA-256 of the files in swagger-ui-dist-5.35.0.tgz on npm."""
FOLDER = files("fewshard_serve.http") / "docs"


@pytest.mark.parametrize("name", PUBLISHED)
def test_swagger_ui_is_as_published(name: str) -> None:
    assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == PUBLISHED[name]


def test_its_licences_are_beside_it() -> None:
    assert "Apache License" in (FOLDER / "LICENSE").read_text()
    assert "SmartBear" in (FOLDER / "NOTICE").read_text()
    assert "MIT" in (FOLDER / "swagger-ui-bundle.js.LICENSE.txt").read_text()


def test_a_trailing_slash_leads_to_the_page(gateway: GatewayApp, call: Call) -> None:
    """The page's addresses are relative, so that it works below the prefix of a proxy."""
    answer = call(gateway, "GET", "/docs/")
    assert (answer.status_code, answer.headers["location"]) == (308, "../docs")


@pytest.mark.parametrize(
    ("path", "kind", "cache"),
    [
        ("/docs", "text/html", "no-cache"),
        ("/docs/docs.js", "text/javascript", "no-cache"),
        ("/docs/docs.css", "text/css", "no-cache"),
        ("/docs/theme.js", "text/javascript", "no-cache"),
        ("/docs/swagger-ui-bundle.js?v=5.35.0", "text/javascript", "max-age=31536000"),
        ("/docs/swagger-ui.css?v=5.35.0", "text/css", "max-age=31536000"),
    ],
)
def test_the_files_are_served(gateway: GatewayApp, call: Call, path: str, kind: str, cache: str) -> None:
    response = call(gateway, "GET", path)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith(kind)
    assert cache in response.headers["cache-control"]
    policy = dict(
        part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";")
    )
    assert (policy["default-src"], policy["script-src"], policy["connect-src"]) == (
        "'none'",
        "'self'",
        "'self'",
    )
    assert policy["frame-ancestors"] == "'none'"
    assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/docs/LICENSE", "/docs/none.js", "/docs/../static.py", "/docs/a/b.js"])
def test_nothing_else_is(gateway: GatewayApp, call: Call, path: str) -> None:
    assert call(gateway, "GET", path).status_code == 404


def test_the_page_asks_for_its_own_files_alone(gateway: GatewayApp, call: Call) -> None:
    page = call(gateway, "GET", "/docs").text
    parts = page.replace("'", '"').split('"')
    asked = [after for before, after in pairwise(parts) if before.endswith(("href=", "src="))]
    assert len(asked) >= 6
    for address in asked:
        assert not re.match(r"/|\w+:", address), "it is relative, for a server below a prefix"
        assert call(gateway, "GET", f"/{address}".replace("/./", "/")).status_code == 200, address
    assert "<style" not in page
    assert "<script>" not in page
