"""Static files of the gateway: the console at `/` and below `/console/`, and Swagger UI at `/docs`.

Swagger UI is an unchanged copy of swagger-ui-dist 5.35.0 from npm, with its licences.
"""

import asyncio
from functools import cache
from importlib.resources import files

from fewshard_serve.errors import NotFound
from fewshard_serve.http.responses import Headers, Response

PAGE = "index.html"

_TYPES = {
    "html": b"text/html; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml",
}
_COMMON: Headers = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))

# No other origins, no inline scripts, and no string becomes HTML: markup in a text or a label is shown as
# text. Images that the user drops are blobs.
_CONSOLE_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob:; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    b"require-trusted-types-for 'script'; trusted-types 'none'"
)
# Swagger UI writes style attributes and draws icons from data: URLs. It shows image responses from blobs.
_DOCS_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
    b"img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_ASK_AGAIN: Headers = ((b"cache-control", b"no-cache"),)
_KEEP: Headers = ((b"cache-control", b"public, max-age=31536000, immutable"),)
"""For vendored files, which the page requests with their version."""


def console_file(name: str) -> Response:
    """One file of the console. Raises `NotFound`."""
    found = console_files().get(name)
    if found is None:
        raise NotFound(f"there is no /console/{name}; the console is at /")
    return found


@cache
def console_files() -> dict[str, Response]:
    """Every file of the console by its name."""
    folder = files("fewshard_serve") / "console"
    headers = (*_COMMON, (b"content-security-policy", _CONSOLE_POLICY), *_ASK_AGAIN)
    return {
        file.name: Response(file.read_bytes(), _type(file.name), headers=headers)
        for file in folder.iterdir()
        if file.is_file()
    }


async def docs_file(name: str) -> Response:
    """One file of the pages at `/docs`. The files are large and read on request. Raises `NotFound`."""
    file = files("fewshard_serve.http") / "docs" / name
    if name not in _docs_names():
        raise NotFound(f"there is no /docs/{name}; the page is at /docs")
    is_vendored = name.startswith("swagger-ui")
    headers = (*_COMMON, (b"content-security-policy", _DOCS_POLICY), *(_KEEP if is_vendored else _ASK_AGAIN))
    return Response(await asyncio.to_thread(file.read_bytes), _type(name), headers=headers)


@cache
def _docs_names() -> frozenset[str]:
    folder = files("fewshard_serve.http") / "docs"
    return frozenset(file.name for file in folder.iterdir() if file.name.rpartition(".")[2] in _TYPES)


def _type(name: str) -> bytes:
    return _TYPES[name.rpartition(".")[2]]
