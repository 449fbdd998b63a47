"""A stand-in for the Hugging Face hub on loopback: downloads and uploads of models.

It answers as the hub's API is documented (https://huggingface.co/docs/hub/api), for the calls that
`huggingface_hub` makes.
"""

import base64
import contextlib
import dataclasses
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_loopback"
LARGE = (".safetensors",)


@dataclasses.dataclass
class Hub:
    """The server with its content.

    Attributes:
      endpoint: its address.
      files: content of each repository by the files' names.
      private: the repositories that were created as private.
      messages: subjects of the commits.
      revisions: branches of the commits.
      uploaded: the content of large files by digest.
      full: refuse to store large files.
    """

    endpoint: str
    files: dict[str, dict[str, bytes]]
    private: set[str] = dataclasses.field(default_factory=set)
    messages: list[str] = dataclasses.field(default_factory=list)
    revisions: list[str] = dataclasses.field(default_factory=list)
    uploaded: dict[str, bytes] = dataclasses.field(default_factory=dict)
    full: bool = False


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one request."""

    hub: Hub

    def do_HEAD(self) -> None:
        self.download(False)

    def do_GET(self) -> None:
        self.download(True)

    def download(self, body: bool) -> None:
        """Answers `/OWNER/NAME/resolve/REVISION/FILE`."""
        repository, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        files = self.hub.files.get(repository, {})
        if name not in files or revision not in ("main", COMMIT):
            error = "EntryNotFound" if files else "RepoNotFound"
            headers = {"X-Error-Code": error, "X-Repo-Commit": COMMIT}
            self.reply(404, b"not found", headers, body)
            return
        digest = hashlib.sha256(files[name]).hexdigest()
        headers = {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT}
        self.reply(200, files[name], headers, body)

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.json(401, {"error": "Invalid username or password."})
        elif self.path == "/api/repos/create":
            self.create(json.loads(content))
        elif self.path == "/api/validate-yaml":
            self.json(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            self.preupload(json.loads(content))
        elif self.path.endswith("/info/lfs/objects/batch"):
            self.batch(json.loads(content))
        elif "/commit/" in self.path:
            self.commit(content)
        else:
            self.json(404, {"error": f"no such call: {self.path}"})

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization') or 'ann'}/{asked['name']}"
        if asked.get("organization") == "others":
            self.json(403, {"error": "You don't have the rights to create a model there"})
            return
        if asked.get("private") or asked.get("visibility") == "private":
            self.hub.private.add(name)
        known = name in self.hub.files
        self.hub.files.setdefault(name, {})
        url = f"{self.hub.endpoint}/{name}"
        self.json(409 if known else 200, {"url": url, "name": name, "id": "1"})

    def preupload(self, asked: dict[str, Any]) -> None:
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
                "oid": None,
            }
            for file in asked["files"]
        ]
        self.json(200, {"files": modes, "commitOid": COMMIT})

    def batch(self, asked: dict[str, Any]) -> None:
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.hub.endpoint}/upload/{one['oid']}"}}}
            for one in asked["objects"]
        ]
        self.json(200, {"transfer": "basic", "objects": objects})

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.hub.full:
            self.reply(507, b"", {})
            return
        digest = self.path.removeprefix("/upload/")
        assert hashlib.sha256(content).hexdigest() == digest
        self.hub.uploaded[digest] = content
        self.reply(200, b"", {})

    def commit(self, content: bytes) -> None:
        _, _, _, owner, name, _, revision = self.path.partition("?")[0].split("/")
        files = self.hub.files[f"{owner}/{name}"]
        for line in content.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                self.hub.messages.append(value["summary"])
                self.hub.revisions.append(revision)
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploaded[value["oid"]]
        url = f"{self.hub.endpoint}/{owner}/{name}/commit/{COMMIT}"
        self.json(200, {"commitUrl": url, "commitOid": COMMIT, "success": True})

    def json(self, status: int, content: Any) -> None:
        self.reply(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def reply(
        self, status: int, content: bytes, headers: dict[str, str], body: bool = True
    ) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def serving(files: dict[str, dict[str, bytes]]) -> Iterator[Hub]:
    """Serves repositories until the end of the context."""
    hub = Hub("", files)
    handler = type("Handler", (Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
