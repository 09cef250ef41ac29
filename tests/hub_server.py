"""A small Hub on this machine: one repository's tree, and its files. Only what `huggingface_hub` asks for."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, folder: Path, repo: str, asked: list[str], *arguments: Any) -> None:
        self.folder, self.repo, self.asked = folder, repo, asked
        super().__init__(*arguments)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.asked.append(f"{self.command} {path}")
        if path == f"/api/models/{self.repo}/tree/main":
            files = sorted(file for file in self.folder.rglob("*") if file.is_file())
            tree = [{"type": "file", "path": str(f.relative_to(self.folder)), "size": f.stat().st_size, "oid": COMMIT}
                    for f in files]  # fmt: skip
            self._answer(json.dumps(tree).encode(), {"Content-Type": "application/json"})
            return
        file = self.folder / path.removeprefix(f"/{self.repo}/resolve/main/")
        if not path.startswith(f"/{self.repo}/resolve/main/") or not file.is_file():
            self.send_error(404)
            return
        content = file.read_bytes()
        self._answer(content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    def _answer(self, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""


@contextmanager
def hub(folder: Path, repo: str) -> Iterator[tuple[str, list[str]]]:
    """(address, what was asked for) of a Hub whose repository `repo` is `folder`."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, folder, repo, asked))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
