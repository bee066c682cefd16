"""The console's files, from memory; `gateway` serves the page at `/` and the rest under `/console/`."""

from importlib.resources import files

from fewshard_serve.http.responses import Headers, Response

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
