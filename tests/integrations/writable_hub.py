"""A Hub on this machine: the few answers over HTTP that pushing a model and loading it again need.

Run as a program it serves on a free port, which it prints; files lie in the folder that is its argument.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlparse

COMMIT = "0123456789012345678901234567890123456789"


class Hub(BaseHTTPRequestHandler):
    """files: what was committed, by repository and path; blobs: what was uploaded, by SHA-256."""

    folder: Path

    def do_POST(self) -> None:
        path, body = urlparse(self.path).path, self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if path == "/api/repos/create":
            asked = json.loads(body)
            self.reply({"url": f"{self.home}/{asked['organization']}/{asked['name']}"})
        elif "/preupload/" in path:
            files = [item["path"] for item in json.loads(body)["files"]]
            modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in files}
            found = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in modes.items()]
            self.reply({"files": found})
        elif path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            put = {item["oid"]: {"upload": {"href": f"{self.home}/blob/{item['oid']}"}} for item in wanted}
            self.reply({"transfer": "basic", "objects": [{**item, "actions": put[item["oid"]]} for item in wanted]})
        elif "/commit/" in path:
            self.commit([json.loads(line) for line in body.splitlines()])
            self.reply({"commitUrl": f"{self.home}/me/vq/commit/{COMMIT}", "commitOid": COMMIT, "success": True})
        else:
            self.reply({}, 200 if path.startswith("/api/") else 404)

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        (self.folder / hashlib.sha256(body).hexdigest()).write_bytes(body)
        self.reply({})

    def do_HEAD(self) -> None:
        self.get(body=False)

    def do_GET(self) -> None:
        self.get(body=True)

    def get(self, body: bool) -> None:
        path = urlparse(self.path).path
        if path.startswith("/api/models/"):
            files = [{"rfilename": path.name} for path in self.folder.iterdir()]
            return self.reply({"id": "me/vq", "sha": COMMIT, "siblings": files})
        file = self.folder / path.rpartition("/")[2]
        if "/resolve/" not in path or not file.is_file():
            return self.reply({}, 404, {"X-Error-Code": "EntryNotFound"})
        content = file.read_bytes()
        etag = hashlib.sha256(content).hexdigest()
        return self.send(content if body else b"", 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, len(content))

    def commit(self, lines: list[dict]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                (self.folder / value["path"]).write_bytes(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                (self.folder / value["oid"]).rename(self.folder / value["path"])

    @property
    def home(self) -> str:
        return f"http://{self.headers['Host']}"

    def reply(self, answer: dict, code: int = 200, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(answer).encode()
        self.send(content, code, {"Content-Type": "application/json", **(headers or {})}, len(content))

    def send(self, content: bytes, code: int, headers: dict[str, str], length: int) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Silent."""


if __name__ == "__main__":
    Hub.folder = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()
