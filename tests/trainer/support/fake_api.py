"""An API server with one endpoint, over TLS: it accepts applies to a job's status, or answers with an error. The
controlplane tier has the same calls against the real API server."""

import json
import ssl
import subprocess
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from finetune_trainer.reporting.api import ApiServer

Json = dict[str, Any]
TOKEN = "a-token"


def accept(body: Json) -> tuple[int, Json]:
    return 200, {"metadata": body["metadata"]}


def deleting(body: Json) -> tuple[int, Json]:
    return 200, {"metadata": {**body["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}}


def deleted(body: Json) -> tuple[int, Json]:
    name = body["metadata"]["name"]
    message = f'finetunejobs.finetune-operator.io "{name}" not found'
    return 404, {"kind": "Status", "message": message, "reason": "NotFound", "details": {"name": name}}


def replaced(body: Json) -> tuple[int, Json]:
    message = "Operation cannot be fulfilled: Precondition failed: UID in precondition: a, UID in object meta: b"
    return 409, {"kind": "Status", "message": message, "reason": "Conflict"}


def not_current(body: Json) -> tuple[int, Json]:
    message = "ValidatingAdmissionPolicy denied request: pod x is not the current attempt of FineTuneJob y"
    return 422, {"kind": "Status", "message": message, "reason": "Invalid"}


def broken(body: Json) -> tuple[int, Json]:
    return 500, {"kind": "Status", "message": "etcdserver: request timed out"}


def forbidden(body: Json) -> tuple[int, Json]:
    return 403, {"kind": "Status", "message": "finetunejobs is forbidden: cannot patch resource", "reason": "Forbidden"}


def hang(body: Json) -> tuple[int, Json]:
    """Answer later than any time-out of the trainer or of a test."""
    time.sleep(300)
    return accept(body)


class FakeApi:
    """``applied`` has the bodies, ``paths`` their URLs; ``answer`` chooses the response."""

    def __init__(self, folder: Path) -> None:
        self.applied: list[Json] = []
        self.paths: list[str] = []
        self.answer: Callable[[Json], tuple[int, Json]] = accept
        folder.mkdir()
        certificate, key = folder / "ca.crt", folder / "key"
        (folder / "token").write_text(f"{TOKEN}\n")
        subprocess.run(
            [
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=fake",
                "-addext",
                "subjectAltName=IP:127.0.0.1",
                "-keyout",
                str(key),
                "-out",
                str(certificate),
            ],
            check=True,
            capture_output=True,
        )
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_PATCH(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.headers["Authorization"] != f"Bearer {TOKEN}":
                    code, response = 401, {"kind": "Status", "message": "Unauthorized"}
                else:
                    code, response = api.answer(body)
                    api.applied.append(body)
                    api.paths.append(self.path)
                self.send_response(code)
                self.end_headers()
                self.wfile.write(json.dumps(response).encode())

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate, key)
        self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()  # poll interval
        self.server = ApiServer(f"https://127.0.0.1:{self._server.server_address[1]}", folder)

    @property
    def status(self) -> Json:
        """The status of the last apply."""
        status: Json = self.applied[-1]["status"]
        return status

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
