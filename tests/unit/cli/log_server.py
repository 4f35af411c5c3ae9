"""A server on loopback that answers as the API server does for one pod: its object, and its log from the kubelet.

Connections break where a test says so: after a number of bytes, in the middle of a line.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from finetune_cli.cluster.client import Client
from finetune_cli.cluster.kubeconfig import Settings

POD = {"metadata": {"name": "a-12345-1-0-x", "namespace": "team", "uid": "u"}}


class PodLog:
    """The log of a pod, and how its connections end."""

    def __init__(self, lines: list[str], cuts: list[int], first: int = 0) -> None:
        self.lines = lines
        self.cuts = list(cuts)
        """Bytes after which each connection breaks; later connections end in order."""
        self.rotated = first
        """Lines at the beginning that no new connection gets, because the kubelet has begun another file."""
        self.asked: list[str | None] = []
        self.follows: list[bool] = []

    def since(self, start: str | None) -> bytes:
        """What the kubelet sends: lines whose time is not before `start`."""
        begin = self.rotated if self.asked[1:] else 0
        kept = [line for line in self.lines[begin:] if start is None or line >= start.removesuffix("Z")]
        return "".join(kept).encode()


@contextmanager
def served(log: PodLog) -> Iterator[Client]:
    """A client of a server with this log."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            if not url.path.endswith("/log"):
                self._object()
                return
            query = parse_qs(url.query)
            log.asked.append(query.get("sinceTime", [None])[0])
            log.follows.append("follow" in query)
            body = log.since(log.asked[-1])
            cut = log.cuts.pop(0) if log.cuts else None
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            part = body if cut is None else body[:cut]
            if part:
                self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            if cut is None:
                self.wfile.write(b"0\r\n\r\n")
            self.close_connection = True

        def _object(self) -> None:
            state = {"name": "trainer", "state": {"terminated": {"exitCode": 0}}}
            text = json.dumps({**POD, "status": {"phase": "Succeeded", "containerStatuses": [state]}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *arguments: object) -> None:
            """Nothing is printed."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield Client(Settings(f"http://127.0.0.1:{server.server_port}", "team", "test"))
    finally:
        server.shutdown()
        server.server_close()
