"""A Hugging Face hub on loopback: the part of its protocol that fetching and publishing need.

Used by tests, through HF_ENDPOINT. Repositories live in memory; a commit's id is a digest over what it holds. Files of
`LARGE` and more bytes are LFS objects, as on the hub: it names the sha256 of their content and redirects downloads.
Faults are switched on by attributes: what goes wrong is up to the test, not to chance.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = 1000


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repository:
    """Branches and what each commit holds."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    private: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        parent = self.branches.get(branch, "")
        text = parent + "".join(f"{name}:{blob_id(content)}\n" for name, content in sorted(files.items()))
        commit = hashlib.sha1(text.encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.branches[branch] = commit
        return commit

    def at(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.branches.get(revision)


class Hub:
    """The server; `address` is what HF_ENDPOINT has to be."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.token: str | None = None
        """Without it, everything is 401."""
        self.cut: dict[str, int] = {}
        """File -> bytes after which its next download breaks off."""
        self.damage: dict[str, int] = {}
        """File -> how many of its next downloads have a wrong byte."""
        self.broken = 0
        """So many next requests are answered by 503."""
        self.ranges: list[tuple[str, str | None]] = []
        """(file, Range header) of each download."""
        self.requests = 0
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def add(self, repository: str, files: dict[str, bytes], kind: str = "models") -> str:
        """A commit of a repository, which is made if need be."""
        return self.repositories.setdefault(f"{kind}/{repository}", Repository()).commit(files)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests += 1
        if self.hub.broken > 0:
            self.hub.broken -= 1
            return self._json(503, {"error": "busy"})
        address = urlsplit(self.path)
        path = unquote(address.path)
        if path.startswith("/objects/"):  # signed links of the hub's storage: no token
            return self._storage(path.removeprefix("/objects/"))
        said = self.headers.get("Authorization")
        if self.hub.token and said != f"Bearer {self.hub.token}":
            return self._json(401, {"error": f"Invalid credentials: {said}"})
        if path == "/api/repos/create":
            return self._create()
        if path == "/api/validate-yaml":
            return self._json(200, {"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+?)(?:/([a-z-]+)/(.+?))?", path):
            return self._api(*found.groups())
        if found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._batch()
        if found := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            kind, name, revision, file = found.groups()
            return self._resolve("datasets" if kind else "models", name, revision, file)
        return self._json(404, {"error": "no such page"})

    def _create(self) -> None:
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if f"models/{name}" in self.hub.repositories:
            return self._json(409, {"error": "exists"})
        self.hub.add(name, {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.hub.repositories[f"models/{name}"].private = asked.get("visibility") == "private"
        return self._json(200, {"url": f"{self.hub.address}/{name}"})

    def _api(self, kind: str, name: str, action: str | None, rest: str | None) -> None:
        repository = self.hub.repositories.get(f"{kind}/{name}")
        if repository is None:
            return self._json(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        if action == "branch":
            repository.branches.setdefault(rest or "", repository.branches["main"])
            return self._json(200, {})
        revision, _, _ = (rest or "main").partition("/")
        commit = repository.at(revision)
        if commit is None:
            return self._json(404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"})
        files = repository.commits[commit]
        if action is None or action == "revision":
            siblings = [{"rfilename": name} for name in files]
            return self._json(200, {"id": name, "sha": commit, "private": repository.private, "siblings": siblings})
        if action in ("tree", "paths-info"):
            wanted = files if action == "tree" else self._paths()
            return self._json(200, [_entry(name, files[name]) for name in wanted if name in files])
        if action == "preupload":
            told = json.loads(self.body)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if f["size"] >= LARGE else "regular", "shouldIgnore": False}
                for f in told
            ]
            return self._json(200, {"files": modes})
        if action == "commit":
            return self._commit(repository, name, revision)
        return self._json(404, {"error": f"no {action}"})

    def _paths(self) -> list[str]:
        if self.headers.get("Content-Type", "").startswith("application/json"):
            return list(json.loads(self.body)["paths"])
        return parse_qs(self.body.decode())["paths"]

    def _commit(self, repository: Repository, name: str, branch: str) -> None:
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        parent = repository.branches[branch]
        if header.get("parentCommit", parent) != parent:
            return self._json(412, {"error": "parent moved"})
        files = dict(repository.commits[parent])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        commit = repository.commit(files, branch)
        return self._json(200, {"commitUrl": f"{self.hub.address}/{name}/commit/{commit}", "commitOid": commit})

    def _batch(self) -> None:
        told = json.loads(self.body)["objects"]
        objects = [
            {**o, "actions": {"upload": {"href": f"{self.hub.address}/objects/{o['oid']}", "header": {}}}} for o in told
        ]
        return self._json(200, {"transfer": "basic", "objects": objects})

    def _resolve(self, kind: str, name: str, revision: str, file: str) -> None:
        repository = self.hub.repositories.get(f"{kind}/{name}")
        commit = repository.at(revision) if repository else None
        content = repository.commits[commit].get(file) if repository and commit else None
        if content is None:
            return self._json(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
        if len(content) >= LARGE:
            oid = hashlib.sha256(content).hexdigest()
            self.hub.objects[oid] = content
            headers = {"X-Repo-Commit": str(commit), "X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
            return self._send(302, b"", {**headers, "Location": f"/objects/{oid}?name={file}"})
        return self._file(file, content, {"X-Repo-Commit": str(commit), "ETag": f'"{blob_id(content)}"'})

    def _storage(self, oid: str) -> None:
        if self.command == "PUT":
            if hashlib.sha256(self.body).hexdigest() != oid:
                return self._json(400, {"error": "another digest"})
            self.hub.objects[oid] = self.body
            return self._send(200, b"", {})
        name = parse_qs(urlsplit(self.path).query).get("name", [oid])[0]
        return self._file(name, self.hub.objects[oid], {"ETag": f'"{oid}"'})

    def _file(self, name: str, content: bytes, headers: dict[str, str]) -> None:
        self.hub.ranges.append((name, self.headers.get("Range")))
        if self.hub.damage.get(name, 0) > 0:
            self.hub.damage[name] -= 1
            content = bytes([content[0] ^ 1]) + content[1:]
        start, status = 0, 200
        if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            start, status = int(found[1]), 206
            headers = {**headers, "Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        return self._send(status, content[start:], headers, self.hub.cut.pop(name, None))

    def _json(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, content: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:cut])
        if cut is not None:
            self.close_connection = True


def _entry(name: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": blob_id(content)}
    if len(content) >= LARGE:
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry
