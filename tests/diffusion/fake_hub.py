"""A small Hub on this machine: the few routes that huggingface_hub's client calls, over real HTTP."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class FakeHub:
    """One repository. cut: bytes after which the connection breaks, once for each file named.

    tells_class: whether it says which pipeline the repository holds.
    down: every answer is 503. broken: files that are answered with 500. ranges, served: what was asked for.
    """

    repo: str
    files: dict[str, bytes]
    revisions: dict[str, str]
    card: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    tells_class: bool = True
    cut: dict[str, int] = field(default_factory=dict)
    down: bool = False
    broken: set[str] = field(default_factory=set)
    ranges: list[str] = field(default_factory=list)
    served: list[str] = field(default_factory=list)
    endpoint: str = ""

    def entries(self) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in self.files.items()
        ]


@contextmanager
def serving(hub: FakeHub) -> Iterator[FakeHub]:
    """The hub behind a free port, until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def folder_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path).strip("/")
        if hub.down:
            return self._send(503, {}, b"", body)
        if not path:
            return self._send(200, {}, b"", body)
        if not path.removeprefix("api/models/").startswith(hub.repo):
            return self._send(401, {"X-Error-Code": "RepoNotFound"}, b"", body)
        rest = path.removeprefix("api/models/").removeprefix(hub.repo).strip("/").split("/")
        if path.startswith("api/models/"):
            return self._api(rest, body)
        return self._file(rest, body)

    def _commit(self, revision: str) -> str | None:
        commits = self.hub.revisions
        return revision if revision in commits.values() else commits.get(revision)

    def _api(self, rest: list[str], body: bool) -> None:
        kind, revision = (rest[0], "/".join(rest[1:]) or "main") if rest != [""] else ("revision", "main")
        commit = self._commit(revision)
        if commit is None:
            return self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"", body)
        if kind == "tree":
            return self._json(self.hub.entries(), body)
        siblings = [{"rfilename": entry["path"], "size": entry["size"]} for entry in self.hub.entries()]
        about = {"id": self.hub.repo, "sha": commit, "siblings": siblings, "cardData": self.hub.card, "tags": []}
        if self.hub.tells_class:
            about["config"] = {
                "diffusers": {"_class_name": json.loads(self.hub.files["model_index.json"])["_class_name"]}
            }
        return self._json({**about, "gated": "manual" if self.hub.gated else False}, body)

    def _file(self, rest: list[str], body: bool) -> None:
        hub, (commit, name) = self.hub, (self._commit(rest[1]), "/".join(rest[2:]))
        if hub.gated and self.headers.get("Authorization") != "Bearer hf_good":
            return self._send(401, {"X-Error-Code": "GatedRepo"}, b"", body)
        if commit is None or name not in hub.files:
            return self._send(404, {"X-Error-Code": "EntryNotFound"}, b"", body)
        if body and name in hub.broken:
            return self._send(500, {}, b"", body)
        data, headers, status = hub.files[name], {"X-Repo-Commit": commit}, 200
        headers["ETag"] = f'"{hashlib.sha1(data).hexdigest()}"'
        wanted = self.headers.get("Range")
        if wanted:
            begin = int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
            hub.ranges.append(f"{name} {begin}")
            data, status = data[begin:], 206
        if body:
            hub.served.append(name)
        return self._send(status, headers, data, body, hub.cut.pop(name, None) if body else None)

    def _json(self, value: object, body: bool) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(value).encode(), body)

    def _send(self, status: int, headers: dict[str, str], data: bytes, body: bool, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True
