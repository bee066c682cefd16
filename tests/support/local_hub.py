"""A Hugging Face Hub on this machine, with one repository: what `huggingface_hub` asks of the real one."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

REPO = "owner/name"


def commit_of(files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class LocalHub:
    """`refs` are branches and tags by name; `error` is what every request is answered with, if it is set."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, bytes]] = {}
        self.refs: dict[str, str] = {}
        self.error: tuple[int, str] | None = None
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET  # noqa: N815  the standard library's name

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def push(self, ref: str, **files: str) -> str:
        """Make a commit of these files, with `config` for config.json, and return its hash."""
        stored = {f"{name}.json": text.encode() for name, text in files.items()}
        commit = commit_of(stored)
        self.commits[commit] = stored
        self.refs[ref] = commit
        return commit

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        self.asked.append(path)
        status, code, body, headers = self._found(path)
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        if code:
            request.send_header("X-Error-Code", code)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)

    def _found(self, path: str) -> tuple[int, str, bytes, dict[str, str]]:
        if self.error is not None:
            return (*self.error, b"{}", {})
        _, _, rest = path.partition(f"/{REPO}/")
        kind, _, rest = rest.partition("/")
        if not kind:
            return 404, "RepoNotFound", b"{}", {}
        revision, _, file = rest.rpartition("/") if kind == "resolve" else (rest, "", "")
        commit = self.refs.get(revision, revision)
        files = self.commits.get(commit)
        if files is None:
            return 404, "RevisionNotFound", b"{}", {}
        if kind == "revision":
            return 200, "", json.dumps({"id": REPO, "sha": commit, "siblings": []}).encode(), {}
        if kind == "tree":
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files.items()
            ]
            return 200, "", json.dumps(tree).encode(), {}
        if file not in files:
            return 404, "EntryNotFound", b"{}", {}
        etag = hashlib.sha1(files[file]).hexdigest()
        return 200, "", files[file], {"ETag": f'"{etag}"', "X-Repo-Commit": commit}
