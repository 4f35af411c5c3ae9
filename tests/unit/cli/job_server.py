"""A server on loopback that plays the API server for jobs: they are created, listed, watched and deleted, and so are
their pods, whose logs the kubelet sends. Who plays the operator is the test."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from finetune_cli import paths

Object = dict[str, Any]
Log = Callable[[str | None], Iterator[bytes]]
"""sinceTime -> parts of the answer. It blocks where the kubelet would wait, and raises `Cut` where a connection
breaks."""
NAMESPACE = "team"
JOBS, PODS, EVENTS = paths.jobs(NAMESPACE), paths.pods(NAMESPACE), paths.core("events", NAMESPACE)

COMPRESSED = 128 * 1024
"""Bytes from which on the API server compresses an answer."""


class Cut(Exception):
    """The connection breaks here."""


class Store:
    """The objects of the namespace."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Object]] = {JOBS: {}, PODS: {}, EVENTS: {}}
        self.logs: dict[str, Log] = {}
        """Name of a pod -> its log."""
        self.on_create: Callable[[str], None] = lambda _: None
        """Called with the name of each job that somebody creates."""
        self.asked: list[str] = []
        """Paths of all requests, with their queries."""
        self.refusals = 0
        """Requests that are still refused, as by an API server that has not read the roles yet."""
        self.sent = 0
        """Bytes of all answers but streams."""
        self._history: list[tuple[str, str, str]] = []
        self._changed = threading.Condition()

    def put(self, path: str, made: Object) -> None:
        """Create or replace an object; watches tell."""
        with self._changed:
            name = made["metadata"]["name"]
            kind = "MODIFIED" if name in self.objects[path] else "ADDED"
            self._note(path, kind, made)
            self.objects[path][name] = made

    def delete(self, path: str, name: str) -> Object:
        with self._changed:
            gone = self.objects[path].pop(name)
            self._note(path, "DELETED", gone)
            return gone

    def _note(self, path: str, kind: str, made: Object) -> None:
        made["metadata"]["resourceVersion"] = str(len(self._history) + 1)
        self._history.append((path, kind, json.dumps(made)))
        self._changed.notify_all()

    def listed(self, path: str, query: dict[str, str]) -> Object:
        with self._changed:
            found = [each for each in self.objects[path].values() if _matches(each, query)]
            begin = int(query.get("continue", 0))
            end = begin + int(query.get("limit") or len(found))
            more = {"continue": str(end)} if end < len(found) else {}
            head = {"resourceVersion": str(len(self._history)), **more}
            return {"kind": "List", "metadata": head, "items": found[begin:end]}

    def watched(self, path: str, query: dict[str, str]) -> Iterator[bytes]:
        at = int(query["resourceVersion"])
        while True:
            with self._changed:
                if at == len(self._history):
                    self._changed.wait(0.5)
                news, at = self._history[at:], len(self._history)
            for where, kind, text in news:
                if where == path and _matches(json.loads(text), query):
                    yield f'{{"type": "{kind}", "object": {text}}}\n'.encode()
            if not news:
                yield b""


def _matches(found: Object, query: dict[str, str]) -> bool:
    labels = dict(part.split("=", 1) for part in query.get("labelSelector", "").split(",") if part)
    wanted = query.get("fieldSelector", "").partition("metadata.name=")[2]
    named = not wanted or found["metadata"]["name"] == wanted
    return named and labels.items() <= (found["metadata"].get("labels") or {}).items()


class Server(ThreadingHTTPServer):
    """Its end waits for no connection."""

    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that broke is no news."""


@contextmanager
def served(store: Store, port: int = 0) -> Iterator[str]:
    """The URL of a server of these objects. At the end, its connections break."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path, query = self._asked()
            if store.refusals > 0:
                store.refusals -= 1
                self._refuse(403, "Forbidden", "user cannot do this", "")
                return
            collection, _, name = path.rpartition("/")
            if path in store.objects:
                if "watch" in query:
                    self._stream(store.watched(path, query))
                else:
                    self._answer(200, store.listed(path, query))
            elif name == "log":
                self._stream(store.logs[collection.rpartition("/")[2]](query.get("sinceTime")))
            elif found := store.objects.get(collection, {}).get(name):
                self._answer(200, found)
            else:
                self._refuse(404, "NotFound", f'finetunejobs "{name}" not found', name)

        def do_POST(self) -> None:
            path, _ = self._asked()
            made = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name = made["metadata"]["name"]
            if name in store.objects[path]:
                self._refuse(409, "AlreadyExists", f'finetunejobs "{name}" already exists', name)
                return
            made["metadata"] |= {"uid": f"{len(store.asked):05}-uid", "namespace": NAMESPACE, "generation": 1}
            made["metadata"]["creationTimestamp"] = "2026-01-31T12:00:00Z"
            store.put(path, made)
            store.on_create(name)
            self._answer(201, made)

        def do_DELETE(self) -> None:
            collection, _, name = self._asked()[0].rpartition("/")
            self._answer(200, store.delete(collection, name))

        def _asked(self) -> tuple[str, dict[str, str]]:
            if over.is_set():
                raise ConnectionAbortedError
            store.asked.append(self.path)
            url = urlsplit(self.path)
            return url.path, {key: values[0] for key, values in parse_qs(url.query).items()}

        def _refuse(self, code: int, reason: str, message: str, name: str) -> None:
            details = {"name": name, "kind": "finetunejobs"}
            self._answer(code, {"kind": "Status", "reason": reason, "message": message, "details": details})

        def _answer(self, code: int, body: Object) -> None:
            text = json.dumps(body).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            if len(text) > COMPRESSED and "gzip" in self.headers.get("Accept-Encoding", ""):
                text = gzip.compress(text, 1)
                self.send_header("Content-Encoding", "gzip")
            store.sent += len(text)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def _stream(self, parts: Iterator[bytes]) -> None:
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.close_connection = True
            with suppress(OSError):  # the reader has gone
                try:
                    for part in parts:
                        if over.is_set():
                            return
                        if part:
                            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                except Cut:
                    return
                self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *arguments: object) -> None:
            """Nothing is printed."""

    over = threading.Event()
    server = Server(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        over.set()
        server.shutdown()
        server.server_close()


def kubeconfig(url: str) -> str:
    """A kubeconfig of that server, as JSON, which is YAML."""
    return json.dumps(
        {
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "c", "user": "u", "namespace": NAMESPACE}}],
            "clusters": [{"name": "c", "cluster": {"server": url}}],
            "users": [{"name": "u", "user": {}}],
        }
    )
