"""As much of a model hub's interface as an upload takes, on loopback: the real one can't be reached from tests."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ModelHub:
    """Keeps what it is sent, by those who have the token.

    Attributes:
        created: (type, repository, private) of each repository.
        files: {(type, repository): {path: content}}.
        requests: how many there were.
    """

    def __init__(self, token: str) -> None:
        self.token, self.requests = token, 0
        self.created: set[tuple[str, str, bool]] = set()
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}
        self._objects: dict[str, bytes] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> ModelHub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(hub) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                hub.requests += 1
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.path.startswith("/objects/"):  # as storage is: its address is the leave
                    hub._objects[self.path.rpartition("/")[2]] = body
                    self.answer(200, {})
                elif self.headers.get("Authorization") != f"Bearer {hub.token}":
                    self.answer(401, {"error": "Invalid username or password."})
                else:
                    self.answer(*hub._answer(self.path.partition("?")[0], body))

            do_GET = do_POST = do_PUT = do_HEAD = handle_any

            def answer(self, code: int, content: Any) -> None:
                data = json.dumps(content).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def _answer(self, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/api/repos/create":
            asked = json.loads(body)
            kind, name = asked.get("type") or "model", f"{asked['organization']}/{asked['name']}"
            private = bool(asked.get("private")) or asked.get("visibility") == "private"
            self.created.add((kind, name, private))
            self.files.setdefault((kind, name), {})
            place = name if kind == "model" else f"{kind}s/{name}"
            return 200, {"url": f"{self.url}/{place}", "id": name, "name": name}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            upload = {one["oid"]: {"upload": {"href": f"{self.url}/objects/{one['oid']}"}} for one in wanted}
            return 200, {"transfer": "basic", "objects": [{**one, "actions": upload[one["oid"]]} for one in wanted]}
        kind, owner, name, verb = path.removeprefix("/api/").split("/")[:4]
        files = self.files[kind.removesuffix("s"), f"{owner}/{name}"]
        if verb == "preupload":
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".parquet")) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return 200, {"files": modes}
        if verb == "commit":
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self._objects[value["oid"]]
                    assert hashlib.sha256(files[value["path"]]).hexdigest() == value["oid"]
            url = f"{self.url}/{owner}/{name}/commit/{'0' * 40}"
            return 200, {"commitUrl": url, "commitOid": "0" * 40, "success": True}
        return 200, {"id": f"{owner}/{name}", "sha": "0" * 40, "siblings": []}
