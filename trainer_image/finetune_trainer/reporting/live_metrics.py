"""GET /metrics of the pod of rank 0: the newest progress for Prometheus, if the installation wants it from pods.

It shows each step, where the status has one in some seconds. It ends with the process. What goes wrong here never
touches the training.
"""

import logging
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from finetune_api.contract import AttemptFacts
from finetune_api.live_metrics import LABELS, PREFIX, PROGRESS_METRICS, progress_values

PORT = "FINETUNE_METRICS_PORT"
"""Variable of the pod. Unset: nothing is served."""

log = logging.getLogger(__name__)


def serve(port: int, attempt: AttemptFacts, stage: str, progress: Callable[[], Mapping[str, Any]]) -> int | None:
    """Serve in a thread. Returns the port; None if it cannot be served."""
    labels = ",".join(
        f'{label}="{value}"' for label, value in zip(LABELS, (attempt.namespace, attempt.name, stage), strict=True)
    )

    class Handler(BaseHTTPRequestHandler):
        timeout = 5

        def do_GET(self) -> None:
            found = self.path.split("?")[0] == "/metrics"
            body = render(labels, progress()).encode() if found else b""
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """A line per reading would hide the others."""

    try:
        server = ThreadingHTTPServer(("", port), Handler)
    except OSError as error:
        log.warning("Port %d cannot serve metrics, and training continues without it: %s", port, error)
        return None
    server.daemon_threads = True
    Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return int(server.server_address[1])


def render(labels: str, progress: Mapping[str, Any]) -> str:
    """Prometheus's text format."""
    lines = []
    for name, value in progress_values(progress).items():
        lines.append(f"# HELP {PREFIX}{name} {PROGRESS_METRICS[name]}")
        lines.append(f"# TYPE {PREFIX}{name} gauge")
        lines.append(f"{PREFIX}{name}{{{labels}}} {value!r}")
    return "".join(f"{line}\n" for line in lines)
