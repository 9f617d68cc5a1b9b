"""A stand-in for a Hugging Face hub: the few requests that uploading a folder makes, answered on this machine."""

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

LATE = 5.0  # seconds


@dataclass
class Hub:
    """What the server was told, and how it answers."""

    endpoint: str = ""
    token: str = "hf_stand_in"
    """the only one that it accepts"""
    repos: dict[str, bool] = field(default_factory=dict)
    """name → whether it is private"""
    files: dict[str, bytes] = field(default_factory=dict)
    """path in the repository → content, once committed"""
    commits: list[str] = field(default_factory=list)
    """their messages"""
    blobs: dict[str, bytes] = field(default_factory=dict)
    """large files by their SHA-256, as uploaded"""
    requests: list[str] = field(default_factory=list)
    """method and path of each"""
    failing: str = ""
    """requests whose path contains this fail"""
    how: int | str = 503
    """how: a status; "half" of an answer; one that is "no JSON", "empty" or a "list"; none at all ("closed"); or the
    right one, but LATE ("late")"""
    over: threading.Event = field(default_factory=threading.Event)
    """set when the server ends, so that no answer is waited for any more"""
    told: Callable[[str], None] = lambda path: None
    """called with the path of each request"""


class _Handler(BaseHTTPRequestHandler):
    server: Any

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def do_GET(self) -> None:  # the name is http.server's
        self._answered(self._get)

    def do_POST(self) -> None:
        self._answered(self._post)

    def do_PUT(self) -> None:
        self._answered(self._put, needs_token=False)  # the address that was given out is enough

    def _put(self, hub: Hub, path: str, body: bytes) -> tuple[int, Any]:
        hub.blobs[path.rpartition("/")[2]] = body
        return 200, {}

    def _answered(self, answer: Any, needs_token: bool = True) -> None:
        hub: Hub = self.server.hub
        path = urlsplit(self.path).path
        hub.requests.append(f"{self.command} {path}")
        body = self._body()
        hub.told(path)
        is_failing = bool(hub.failing) and hub.failing in path
        if is_failing and hub.how == "late":
            if hub.over.wait(LATE):
                self.close_connection = True
                return
            is_failing = False
        if is_failing:
            self._fail(hub)
        elif needs_token and self.headers.get("authorization") != f"Bearer {hub.token}":
            self._reply(401, {"error": "Invalid username or password."})
        else:
            self._reply(*answer(hub, path, body))

    def _get(self, hub: Hub, path: str, _: bytes) -> tuple[int, Any]:
        name = path.removeprefix("/api/models/").removesuffix("/revision/main")
        if name not in hub.repos:
            return 404, {"error": "Repository not found"}
        return 200, {"id": name, "modelId": name, "private": hub.repos[name], "sha": "0" * 40, "siblings": []}

    def _post(self, hub: Hub, path: str, body: bytes) -> tuple[int, Any]:
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(part for part in (asked.get("organization"), asked["name"]) if part)
            if name in hub.repos:
                return 409, {"error": "You already created this model repo", "url": f"{hub.endpoint}/{name}"}
            hub.repos[name] = asked.get("private", asked.get("visibility") == "private")
            return 200, {"url": f"{hub.endpoint}/{name}", "name": name, "id": name}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if "/preupload/" in path:
            listed = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            return 200, {"files": listed}
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**file, "actions": {"upload": {"href": f"{hub.endpoint}/blobs/{file['oid']}"}}}
                for file in json.loads(body)["objects"]
            ]
            return 200, {"transfer": "basic", "objects": objects}
        if "/commit/" in path:
            name = path.removeprefix("/api/models/").partition("/commit/")[0]
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "header":
                    hub.commits.append(value["summary"])
                elif line["key"] == "file":
                    hub.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    hub.files[value["path"]] = hub.blobs[value["oid"]]
            return 200, {
                "commitUrl": f"{hub.endpoint}/{name}/commit/{'0' * 40}",
                "commitOid": "0" * 40,
                "hookOutput": "",
                "success": True,
            }
        return 404, {"error": f"no such path: {path}"}

    def _fail(self, hub: Hub) -> None:
        if isinstance(hub.how, int):
            self._reply(hub.how, {"error": "out of order"})
        elif hub.how in ("empty", "list"):
            self._reply(200, {} if hub.how == "empty" else [1])
        elif hub.how in ("half", "no JSON"):
            content = b'{"url": "http'
            self.send_response(200)
            self.send_header("content-length", str(len(content) * (2 if hub.how == "half" else 1)))
            self.end_headers()
            self.wfile.write(content)
            self.close_connection = True
        else:
            self.close_connection = True

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _reply(self, status: int, document: Any) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def hub_running() -> Iterator[Hub]:
    """A hub on a free port of this machine, until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub = hub = Hub(f"http://127.0.0.1:{server.server_port}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.over.set()
        server.shutdown()
        server.server_close()
