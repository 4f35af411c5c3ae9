"""The real operator as a process: `python -m finetune_operator`, as the chart's Deployment would run it.

Its environment is the rendered Deployment's, but for what a test says; its identity is the chart's ServiceAccount, so
every test is one of its rights, too. Fault tests kill it and start it again; its log is kept for whoever has to read
why a test failed.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from uuid import uuid4

import yaml

from tests import chart
from tests.kube import Kube, Object, until


def kubeconfig(
    kube: Kube, path: Path, server: str = "", namespace: str = chart.NAMESPACE, name: str = chart.RELEASE
) -> Path:
    """A kubeconfig of the operator's ServiceAccount, or of another; with `server`, for a proxy on loopback that passes
    tokens on. `namespace` is that of its release."""
    asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 7200}}
    account = f"api/v1/namespaces/{namespace}/serviceaccounts/{name}"
    token = kube.call("POST", f"{account}/token", asked)["status"]["token"]
    admin = yaml.safe_load(kube.kubeconfig.read_text())
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": {"server": server} if server else admin["clusters"][0]["cluster"]}],
        "users": [{"name": "operator", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "operator"}}],
        "current-context": "test",
    }
    path.write_text(json.dumps(document))
    path.chmod(0o600)
    return path


def deployed_environment(manifests: list[Object]) -> dict[str, str]:
    """What the chart's Deployment tells the operator."""
    deployment = chart.only(manifests, "Deployment")
    variables = deployment["spec"]["template"]["spec"]["containers"][0]["env"]
    return {variable["name"]: variable["value"] for variable in variables if "value" in variable}


class OperatorProcess:
    """One operator, started and ended as often as a test likes. Settings are those of FINETUNE_*, in lower case."""

    def __init__(self, config: Path, environment: dict[str, str], log: Path, **settings: Any) -> None:
        self.log = log
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._base = {"PATH": os.environ["PATH"], "HOME": str(log.parent), "KUBECONFIG": str(config), **environment}
        # Each start is one of the same container, in the same pod.
        self.identity = f"operator-{uuid4().hex[:5]}"
        self.settings = {"retry_seconds": 0.2, "identity": self.identity, **settings}

    def start(self, *, wait: bool = True, **settings: Any) -> None:
        """Start it, and wait until it answers. Settings stay for later starts."""
        assert not self.alive, "it runs already"
        self.settings |= settings
        self._port = _free_port()
        said = {f"FINETUNE_{name.upper()}": str(value) for name, value in self.settings.items()}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "finetune_operator"],
                env={**self._base, **said, "FINETUNE_HEALTH_PORT": str(self._port)},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.starts += 1
        if wait:
            until("the operator answers at /healthz", self._answers, timeout=120, every=0.05)

    @property
    def pid(self) -> int:
        assert self._process is not None, "never started"
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL: nothing of it is left when this returns."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> int:
        """SIGTERM, as a node's shutdown or an upgrade sends it; the exit code."""
        self.ask_to_end()
        return self.ended()

    def ask_to_end(self) -> None:
        """SIGTERM, without waiting."""
        assert self._process is not None, "never started"
        self._process.send_signal(signal.SIGTERM)

    def pause(self) -> None:
        """SIGSTOP, as a machine that is suspended or has no CPU to give."""
        assert self._process is not None, "never started"
        self._process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        assert self._process is not None, "never started"
        self._process.send_signal(signal.SIGCONT)

    def leads(self) -> bool:
        """Whether it says that it is the leader."""
        return self.alive and "finetune_operator_leader 1\n" in self.get("metrics")[1]

    def ended(self) -> int:
        """Wait for its end; the exit code."""
        assert self._process is not None, "never started"
        return self._process.wait(timeout=30)

    def health(self) -> tuple[int, str]:
        """Status and text of GET /healthz; status 0 when nobody answers."""
        return self.get("healthz")

    def get(self, path: str) -> tuple[int, str]:
        """Status and text of a path of its health port."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    @property
    def address(self) -> str:
        """Where it answers."""
        return f"127.0.0.1:{self._port}"

    def said(self, since: int = 0) -> str:
        """Its log from a byte on."""
        with self.log.open("rb") as log:
            log.seek(since)
            return log.read().decode()

    def _answers(self) -> bool:
        assert self.alive, f"the operator has ended:\n{self.said()[-3000:]}"
        return self.health()[0] == 200


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port
