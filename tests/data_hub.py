"""A small Hugging Face hub on loopback for datasets: listing, ranges, and uploads in commits."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_secret"
LARGE = 1000  # bytes from which a file is stored as an object


class DataHub:
    """Datasets by name, each with files by revision and name.

    `private` datasets need TOKEN, `gated` ones refuse their files. Uploads need TOKEN, and more
    than `stop_after` uploaded objects are never answered, as if the network was gone.
    """

    def __init__(self, **datasets: dict[str, bytes]) -> None:
        self.revisions: dict[str, dict[str, dict[str, bytes]]] = {}
        for name, files in datasets.items():
            self.revisions[f"me/{name}"] = {"main": files}
        self.private: dict[str, bool] = {}
        self.gated: set[str] = set()
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.uploads: list[str] = []
        self.commits: list[list[str]] = []
        self.stop_after: int | None = None
        self.stopped, self.waiting = threading.Event(), threading.Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                _Answer(hub, self).give()

            do_GET = do_HEAD  # noqa: N815
            do_POST = do_HEAD  # noqa: N815
            do_PUT = do_HEAD  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def files(self, name: str) -> dict[str, bytes]:
        return self.revisions[f"me/{name}"]["main"]

    def __enter__(self) -> DataHub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Answer:
    """The answer to one request."""

    def __init__(self, hub: DataHub, request: BaseHTTPRequestHandler) -> None:
        self.hub, self.request = hub, request
        split = urlsplit(request.path)
        self.parts = [unquote(part) for part in split.path.strip("/").split("/")]
        self.query = parse_qs(split.query)
        length = int(request.headers.get("Content-Length") or 0)
        self.body = request.rfile.read(length)
        self.may = request.headers.get("Authorization") == f"Bearer {TOKEN}"
        hub.requests.append(f"{request.command} {split.path}")

    def give(self) -> None:
        match self.parts:
            case ["api", "repos", "create"]:
                self.create()
            case ["api", "whoami-v2"]:
                self.json({"name": "me", "type": "user"} if self.may else {}, self.may)
            case ["api", "validate-yaml"]:
                self.json({"errors": [], "warnings": []})
            case ["api", "datasets", owner, name, *rest]:
                self.api(f"{owner}/{name}", rest)
            case ["datasets", owner, name, "resolve", revision, *path]:
                self.resolve(f"{owner}/{name}", revision, "/".join(path))
            case ["datasets", _, _, "info", "lfs", "objects", "batch"]:
                self.batch()
            case ["object", oid]:
                self.put(oid)
            case _:
                self.refuse(404, "RepoNotFound")

    def json(self, value: object, ok: bool = True) -> None:
        data = json.dumps(value).encode()
        self.request.send_response(200 if ok else 401)
        self.request.send_header("Content-Type", "application/json")
        self.request.send_header("Content-Length", str(len(data)))
        self.request.end_headers()
        if self.request.command != "HEAD":
            self.request.wfile.write(data)

    def refuse(self, status: int, code: str) -> None:
        data = json.dumps({"error": code}).encode()
        self.request.send_response(status)
        self.request.send_header("X-Error-Code", code)
        self.request.send_header("X-Error-Message", code)
        self.request.send_header("Content-Length", str(len(data)))
        self.request.end_headers()
        if self.request.command != "HEAD":
            self.request.wfile.write(data)

    def revision(self, repository: str, revision: str) -> dict[str, bytes] | None:
        """The files of a revision; answers if there is none."""
        hidden = self.hub.private.get(repository) and not self.may
        if repository not in self.hub.revisions or hidden:
            self.refuse(404 if self.may else 401, "RepoNotFound")
            return None
        revisions = self.hub.revisions[repository]
        revision = "main" if revision == COMMIT else revision
        if revision not in revisions:
            self.refuse(404, "RevisionNotFound")
            return None
        return revisions[revision]

    def api(self, repository: str, rest: list[str]) -> None:
        action, *more = rest or [""]
        revision = more[0] if more else "main"
        if (files := self.revision(repository, revision)) is None:
            return
        if action in ("", "revision"):
            private = self.hub.private.get(repository, False)
            siblings = [{"rfilename": name} for name in files]
            info = {"id": repository, "sha": COMMIT, "private": private, "siblings": siblings}
            self.json(info | {"tags": [], "downloads": 0, "likes": 0, "gated": False})
        elif action == "tree":
            self.tree(files, "/".join(more[1:]))
        elif action == "paths-info":
            wanted = json.loads(self.body)["paths"]
            self.json([_file(name, files[name]) for name in wanted if name in files])
        elif not self.may:
            self.refuse(401, "Unauthorized")
        elif action == "preupload":
            self.preupload(files)
        elif action == "commit":
            self.commit(repository, files)

    def tree(self, files: dict[str, bytes], folder: str) -> None:
        below = {name: data for name, data in files.items() if name.startswith(folder)}
        if folder and not any(name.startswith(f"{folder}/") for name in files):
            self.refuse(404, "EntryNotFound")
            return
        folders = {name[:i] for name in below for i, char in enumerate(name) if char == "/"}
        rows = [{"type": "directory", "path": each, "oid": "0" * 40, "size": 0}
                for each in sorted(folders) if each != folder]  # fmt: skip
        rows += [_file(name, data) for name, data in below.items()]
        if self.query.get("recursive") != ["True"] and self.query.get("recursive") != ["true"]:
            start = f"{folder}/" if folder else ""
            rows = [row for row in rows if "/" not in row["path"][len(start) :]]
        self.json(rows)

    def resolve(self, repository: str, revision: str, name: str) -> None:
        if (files := self.revision(repository, revision)) is None:
            return
        if repository in self.hub.gated:
            self.refuse(403, "GatedRepo")
            return
        if name not in files:
            self.refuse(404, "EntryNotFound")
            return
        data, request = files[name], self.request
        begin, end = 0, len(data)
        if asked := request.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            begin, end = int(first), min(end, int(last) + 1 if last else end)
        request.send_response(206 if asked else 200)
        request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        request.send_header("Content-Length", str(end - begin))
        if asked:
            request.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(data[begin:end])

    def create(self) -> None:
        asked = json.loads(self.body)
        repository = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if not self.may:
            self.refuse(401, "Unauthorized")
        elif not repository.startswith("me/"):
            self.refuse(403, "Forbidden")
        elif repository in self.hub.revisions:
            self.refuse(409, "Exists")
        else:
            self.hub.revisions[repository] = {"main": {}}
            self.hub.private[repository] = asked.get("visibility") == "private" or bool(
                asked.get("private")
            )
            self.json({"url": f"{self.hub.url}/datasets/{repository}"})

    def preupload(self, files: dict[str, bytes]) -> None:
        rows = []
        for asked in json.loads(self.body)["files"]:
            known = files.get(asked["path"])
            mode = "lfs" if asked["size"] >= LARGE else "regular"
            oid = _oid(known) if known is not None else None
            rows.append(
                {"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}
            )
        self.json({"files": rows})

    def batch(self) -> None:
        rows = []
        for asked in json.loads(self.body)["objects"]:
            row = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.hub.objects:
                row["actions"] = {"upload": {"href": f"{self.hub.url}/object/{asked['oid']}"}}
            rows.append(row)
        self.json({"transfer": "basic", "objects": rows})

    def put(self, oid: str) -> None:
        hub = self.hub
        if hub.stop_after is not None and len(hub.uploads) >= hub.stop_after:
            hub.waiting.set()
            hub.stopped.wait(60)
            self.request.close_connection = True
            return
        assert hashlib.sha256(self.body).hexdigest() == oid
        hub.objects[oid] = self.body
        hub.uploads.append(oid)
        self.json({})

    def commit(self, repository: str, files: dict[str, bytes]) -> None:
        changed = []
        for line in self.body.splitlines():
            row = json.loads(line)
            value = row["value"]
            if row["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif row["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            else:
                continue
            changed.append(value["path"])
        self.hub.commits.append(changed)
        self.json(
            {
                "commitOid": COMMIT,
                "commitUrl": f"{self.hub.url}/datasets/{repository}/commit/{COMMIT}",
            }
        )


def _oid(data: bytes) -> str:
    if len(data) >= LARGE:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _file(name: str, data: bytes) -> dict[str, object]:
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    found = {"type": "file", "path": name, "oid": oid, "size": len(data)}
    if len(data) >= LARGE:
        sha = hashlib.sha256(data).hexdigest()
        found["lfs"] = {"oid": sha, "sha256": sha, "size": len(data), "pointerSize": 130}
    return found
