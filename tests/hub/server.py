"""A server that speaks the Hub's protocol: who am I, a repository made, a commit with small and large files, downloads.

What it answers is what ``huggingface_hub`` asks for in ``HfApi.whoami``, ``model_info``, ``create_repo`` and
``create_commit``; large files go by Git LFS.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Callable
from typing import Any

TOKEN = "hf_of_this_test"
LARGE = (".zip", ".safetensors", ".onnx")  # that go by LFS


class Repository:
    """Files and commits of one."""

    def __init__(self, private: bool = False) -> None:
        self.private, self.files, self.commits = private, dict[str, bytes](), list[str]()
        self.commit({})

    def commit(self, files: dict[str, bytes]) -> str:
        self.files |= files
        self.commits.append(hashlib.sha1(repr((self.commits, sorted(files.items()))).encode()).hexdigest())
        return self.commits[-1]


class Hub:
    """What the server holds, and what it does wrong.

    Attributes:
        repositories: by their names.
        me: what it says of the token's owner.
        asked: ``METHOD path`` of every request.
        fault: from ``METHOD path`` to a status to answer with, "die" to hang up, or None.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []
        token = {"displayName": "t", "role": "write"}
        self.me: dict[str, Any] = {
            "name": "jane",
            "type": "user",
            "auth": {"type": "access_token", "accessToken": token},
        }
        self.me["orgs"] = [{"name": "org", "roleInOrg": "write"}, {"name": "readers", "roleInOrg": "read"}]
        self.fault: Callable[[str], int | str | None] = lambda asked: None


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers for the ``hub`` of its server."""

    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        return self.server.hub  # type: ignore[attr-defined,no-any-return]

    def answer(self, status: int, content: Any = None, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for name, value in {"Content-Length": str(len(body)), "Content-Type": kind, **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        self.handle_one()

    do_HEAD = do_POST = do_PUT = do_GET

    def handle_one(self) -> None:
        path = self.path.split("?")[0]
        asked = f"{self.command} {path}"
        self.hub.asked.append(asked)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.hub.fault(asked)
        if fault == "die":
            self.close_connection = True
            self.connection.close()
            return
        if fault is not None:
            self.answer(int(fault), {"error": "told so by the test"})
            return
        writes = self.command in ("POST", "PUT") or path.startswith("/api/whoami")
        if writes and self.command != "PUT" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Invalid credentials"})
            return
        for pattern, method in ROUTES:
            match = re.fullmatch(pattern, asked)
            if match:
                getattr(self, method)(body, **match.groupdict())
                return
        self.answer(404, {"error": f"no such thing: {asked}"})

    def absent(self) -> None:
        self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")

    def whoami(self, body: bytes) -> None:
        self.answer(200, self.hub.me)

    def info(self, body: bytes, name: str) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            return self.absent()
        siblings = [{"rfilename": file} for file in sorted(repository.files)]
        found = {"_id": "1", "id": name, "modelId": name, "sha": repository.commits[-1], "private": repository.private}
        return self.answer(200, found | {"siblings": siblings, "tags": [], "downloads": 0, "likes": 0})

    def may_write(self, body: bytes, name: str) -> None:
        self.answer(200, {}) if name in self.hub.repositories else self.absent()

    def tree(self, body: bytes, name: str) -> None:
        files = self.hub.repositories[name].files
        self.answer(200, [{"type": "file", "path": n, "size": len(c), "oid": "1" * 40} for n, c in files.items()])

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repositories:
            return self.answer(409, {"error": "You already created this model repo"})
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repositories[name] = Repository(private)
        return self.answer(200, {"url": f"{self.address}/{name}"})

    def validate(self, body: bytes) -> None:
        self.answer(200, {"errors": [], "warnings": []})

    def preupload(self, body: bytes, name: str) -> None:
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": self.oid_of(name, file["path"]),
            }
            for file in json.loads(body)["files"]
        ]
        self.answer(200, {"files": files})

    def oid_of(self, name: str, path: str) -> str | None:
        content = self.hub.repositories[name].files.get(path)
        if content is None:
            return None
        if path.endswith(LARGE):
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def batch(self, body: bytes, name: str) -> None:
        objects = []
        for each in json.loads(body)["objects"]:
            upload = {"href": f"{self.address}/lfs/{each['oid']}"}
            actions = {"upload": upload, "verify": {"href": f"{self.address}/verify"}}
            objects.append({"oid": each["oid"], "size": each["size"], "actions": actions})
        self.answer(200, {"transfer": "basic", "objects": objects})

    def upload(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.large[oid] = body
        self.answer(200, b"")

    def verify(self, body: bytes) -> None:
        told = json.loads(body)
        self.answer(200 if len(self.hub.large[told["oid"]]) == told["size"] else 400, {})

    def commit(self, body: bytes, name: str) -> None:
        repository, files = self.hub.repositories[name], {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit") not in (None, repository.commits[-1]):
                return self.answer(412, {"error": "A commit has happened since"})
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        oid = repository.commit(files)
        told = {"commitUrl": f"{self.address}/{name}/commit/{oid}", "commitOid": oid, "pullRequestUrl": None}
        return self.answer(200, told | {"success": True})

    def resolve(self, body: bytes, name: str, file: str) -> None:
        repository = self.hub.repositories.get(name)
        if repository is None:
            return self.absent()
        if file not in repository.files:
            return self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
        content = repository.files[file]
        etag = f'"{self.oid_of(name, file)}"'
        return self.answer(200, content, ETag=etag, X_Repo_Commit=repository.commits[-1])

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"  # type: ignore[attr-defined]

    def log_message(self, *arguments: Any) -> None:
        """Nothing."""


NAME = r"(?P<name>[\w.-]+/[\w.-]+)"
ROUTES = [
    (r"GET /api/whoami-v2", "whoami"),
    (rf"GET /api/models/{NAME}(?:/revision/\w+)?", "info"),
    (rf"GET /api/models/{NAME}/auth-check/write", "may_write"),
    (rf"GET /api/models/{NAME}/tree/.*", "tree"),
    (r"POST /api/repos/create", "create"),
    (r"POST /api/validate-yaml", "validate"),
    (rf"POST /api/models/{NAME}/preupload/main", "preupload"),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", "batch"),
    (r"PUT /lfs/(?P<oid>\w+)", "upload"),
    (r"POST /verify", "verify"),
    (rf"POST /api/models/{NAME}/commit/main", "commit"),
    (rf"(?:GET|HEAD) /{NAME}/resolve/\w+/(?P<file>.+)", "resolve"),
]


def serve() -> http.server.ThreadingHTTPServer:
    """A running server; its ``hub`` is a :class:`Hub`."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.hub = Hub()  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return server
