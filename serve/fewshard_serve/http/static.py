"""The frame and the look of the page at `/docs`. No script, no font, no network.

The page at `/docs`, drawn from the OpenAPI document; called by `gateway` once, when it starts.

The console's files, from memory; `gateway` serves the page at `/` and the rest under `/console/`.
"""

import json
from html import escape
from importlib.resources import files
from typing import Any

from fewshard_serve import __version__
from fewshard_serve.http.responses import Headers, Response

_ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Crect width='16' height='16' rx='3' fill='%231d4ed8'/%3E"
    "%3Cpath d='M4 12V4h8M4 8h5' stroke='white' stroke-width='2' fill='none'/%3E%3C/svg%3E"
)

_STYLE = """
:root { --ink:#14213d; --soft:#5a6478; --line:#dde3ec; --paper:#fff; --panel:#f6f8fb; --accent:#1d4ed8;
  --good:#15803d; --wait:#b45309 }
@media (prefers-color-scheme: dark) { :root { --ink:#e6ebf4; --soft:#9aa6ba; --line:#2a3446; --paper:#0f1624;
  --panel:#172033; --accent:#7aa2ff; --good:#4ade80; --wait:#fbbf24 } }
* { box-sizing:border-box }
body { margin:0; color:var(--ink); background:var(--paper); font:16px/1.55 system-ui,sans-serif }
main, header > div { max-width:64rem; margin:0 auto; padding:0 1.25rem }
header { border-bottom:1px solid var(--line); background:var(--panel) }
header > div { display:flex; flex-wrap:wrap; align-items:baseline; gap:.5rem 1.5rem; padding-block:1rem }
header strong { font-size:1.25rem; letter-spacing:-.01em }
nav { display:flex; gap:1.25rem; margin-left:auto }
a { color:var(--accent); text-decoration:none }
a:hover { text-decoration:underline }
h1 { font-size:1.6rem; letter-spacing:-.02em; margin:2rem 0 .25rem }
h2 { font-size:1.1rem; margin:2rem 0 .5rem }
p { margin:.25rem 0 1rem; max-width:46rem }
.soft { color:var(--soft) }
.scroll { overflow-x:auto; border:1px solid var(--line); border-radius:.6rem }
table { border-collapse:collapse; width:100%; font-size:.94rem }
th, td { padding:.55rem .8rem; text-align:left; white-space:nowrap; border-bottom:1px solid var(--line) }
th { color:var(--soft); font-weight:500; background:var(--panel) }
tr:last-child td { border-bottom:0 }
.number { text-align:right; font-variant-numeric:tabular-nums }
.ready { color:var(--good) }
.waiting { color:var(--wait) }
code, pre { font:.875rem/1.5 ui-monospace,monospace }
pre { margin:.5rem 0; padding:.8rem 1rem; white-space:pre-wrap;
  overflow-wrap:anywhere; background:var(--panel);
  border:1px solid var(--line); border-radius:.6rem }
section { border-top:1px solid var(--line); padding:1rem 0 }
.method { display:inline-block; min-width:3.4rem; font-weight:600; color:var(--accent) }
footer { color:var(--soft); font-size:.9rem; margin:2.5rem 0 }
"""


def page(title: str, body: str) -> str:
    """A whole HTML page; `body` is HTML, `title` is text."""
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="{_ICON}"><style>{_STYLE}</style></head>\n'
        "<body><header><div><strong>Fewshard</strong>"
        f'<span class="soft">{escape(__version__)}</span>'
        '<nav><a href="/">Console</a><a href="/docs">API</a><a href="/metrics">Metrics</a></nav>'
        "</div></header>\n"
        f"<main>{body}</main></body></html>\n"
    )


_MODEL = "sst2-moe"
_HOST = "localhost:8000"


def docs_page(openapi: dict[str, Any]) -> str:
    """HTML of every operation with its curl call and its errors."""
    info = openapi["info"]
    operations = [
        _operation(method, path, operation)
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    ]
    return page(
        "Fewshard API",
        f"<h1>API</h1><p>{escape(info['description'])}</p>"
        "<p class='soft'>For programs: <a href='/openapi.json'>/openapi.json</a> (OpenAPI 3.1).</p>"
        f"{''.join(operations)}",
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    errors = [
        f"{status} {answer['description']}"
        for status, answer in operation["responses"].items()
        if status != "200"
    ]
    shown = [*_calls(method, path, operation), *_answer(operation)]
    return (
        f"<section><h2><span class='method'>{method.upper()}</span> <code>{escape(path)}</code></h2>"
        f"<p>{escape(operation['summary'])}</p>"
        f"{''.join(f'<pre>{escape(text)}</pre>' for text in shown)}"
        f"<p class='soft'>Errors: {escape('; '.join(errors))}</p></section>"
    )


def _answer(operation: dict[str, Any]) -> list[str]:
    """An answer as it may look, where the document has one."""
    content = operation["responses"]["200"]["content"].get("application/json", {})
    return [_filled_in(content["example"], indent=2)] if "example" in content else []


def _filled_in(example: Any, indent: int | None = None) -> str:
    return json.dumps(example, indent=indent).replace("{model}", _MODEL)


def _calls(method: str, path: str, operation: dict[str, Any]) -> list[str]:
    """What to type: one call with JSON, one with an image where the operation takes it."""
    url = f"{_HOST}{path.format(model=_MODEL)}"
    if method == "get":
        return [f"curl {url}"]
    content = operation["requestBody"]["content"]
    body = _filled_in(content["application/json"]["example"])
    calls = [f"curl {url} -d '{body}'"]
    if "image/*" in content:
        query = "?model=cifar10-dense" if path == "/classify" else "?top_k=3"
        image_url = f"{_HOST}{path.format(model='cifar10-dense')}{query}"
        calls.append(f"curl '{image_url}' -H 'Content-Type: image/png' --data-binary @cat.png")
    return calls


PREFIX = "/console/"
PAGE = "index.html"

_TYPES = {
    "html": b"text/html; charset=utf-8",
    "css": b"text/css; charset=utf-8",
    "js": b"text/javascript; charset=utf-8",
    "svg": b"image/svg+xml",
}

# Nothing comes from elsewhere, nothing inline runs, and no string can become HTML: what a text or a label
# smuggles in is shown. An image that was dropped is a blob.
_HEADERS: Headers = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob:; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        b"require-trusted-types-for 'script'; trusted-types 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
)


def console_files() -> dict[str, Response]:
    """Every file of the console by its path; the page is at `/`."""
    folder = files("fewshard_serve") / "console"
    named = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    return {
        "/" if name == PAGE else f"{PREFIX}{name}": Response(
            body, _TYPES[name.rpartition(".")[2]], headers=_HEADERS
        )
        for name, body in named.items()
    }
