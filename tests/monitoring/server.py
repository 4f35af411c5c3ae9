"""Prometheus as a process, with the rules of the chart, and its HTTP API."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.chart import CHART
from tests.cluster import prometheus
from tests.kube import until

RULES = CHART / "files" / "alerts.yaml"


@dataclass(frozen=True)
class Prometheus:
    """A running server."""

    url: str

    def get(self, path: str, **query: object) -> Any:
        """The data of an answer of the API."""
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(address, timeout=30) as answer:
            return json.load(answer)["data"]

    def at_once(self, expression: str, time: float) -> list[Any]:
        """The series of an instant query."""
        result: list[Any] = self.get("query", query=expression, time=time)["result"]
        return result

    def over_time(self, expression: str, start: float, end: float, step: float) -> list[Any]:
        """The series of a range query."""
        result: list[Any] = self.get("query_range", query=expression, start=start, end=end, step=step)["result"]
        return result


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


@contextlib.contextmanager
def serving(home: Path, targets: list[str], interval: str = "1s") -> Iterator[Prometheus]:
    """A server that reads the targets, as the chart's PodMonitor has it."""
    job = {"job_name": "finetune-operator", "honor_labels": True, "static_configs": [{"targets": targets}]}
    times = {"scrape_interval": interval, "evaluation_interval": interval}
    config = home / "prometheus.yml"
    config.write_text(yaml.safe_dump({"global": times, "rule_files": [str(RULES)], "scrape_configs": [job]}))
    port = free_port()
    command = [
        str(prometheus.program("prometheus")),
        f"--config.file={config}",
        f"--storage.tsdb.path={home / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=warn",
    ]
    server = Prometheus(f"http://127.0.0.1:{port}")
    with (home / "prometheus.log").open("wb") as log:
        running = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            until("Prometheus is ready", lambda: _answers(f"{server.url}/-/ready"), timeout=120, every=0.2)
            yield server
        finally:
            running.terminate()
            running.wait(timeout=30)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
