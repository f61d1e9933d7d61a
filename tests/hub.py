"""A small Hugging Face hub on loopback: enough of its protocol for one repository's files."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves `files` of `repository`; `cut_after` bytes it drops the connection, once."""

    def __init__(self, repository: str, files: dict[str, bytes]) -> None:
        self.repository, self.files = repository, files
        self.cut_after: int | None = None
        self.requests: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        self.requests.append(f"{request.command} {request.path}")
        prefix = f"/{self.repository}/resolve/"
        path = unquote(request.path)
        if not path.startswith(prefix):
            self._refuse(request, "RepoNotFound")
            return
        revision, _, name = path.removeprefix(prefix).partition("/")
        if revision not in ("main", COMMIT):
            self._refuse(request, "RevisionNotFound")
        elif name not in self.files:
            self._refuse(request, "EntryNotFound")
        else:
            self._send(request, self.files[name], body=body)

    def _refuse(self, request: BaseHTTPRequestHandler, code: str) -> None:
        message = json.dumps({"error": code}).encode()
        request.send_response(404)
        request.send_header("X-Error-Code", code)
        request.send_header("Content-Length", str(len(message)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(message)

    def _send(self, request: BaseHTTPRequestHandler, data: bytes, *, body: bool) -> None:
        start = 0
        if asked := request.headers.get("Range"):
            start = int(asked.removeprefix("bytes=").partition("-")[0])
        request.send_response(206 if start else 200)
        request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        request.send_header("Content-Length", str(len(data) - start))
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        request.end_headers()
        if not body:
            return
        if self.cut_after is not None:
            request.wfile.write(data[start : start + self.cut_after])
            request.wfile.flush()
            request.close_connection = True
            return
        request.wfile.write(data[start:])
