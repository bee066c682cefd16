"""The page at `/docs`, drawn from the OpenAPI document; called by `gateway` once, when it starts."""

import json
from html import escape
from typing import Any

from fewshard_serve.http.pages import page

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
