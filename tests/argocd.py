"""The real Argo CD as processes: application controller, repository server, API server and Redis, on loopback.

They need only an API server and a Git repository in a folder. Periodic comparisons are off: Argo CD compares when an
object changes, or when a test says that there is a commit, as a webhook would. Every wait is for something to see. The
tiers controlplane and e2e use this: an API server without pods, and a whole cluster.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml

from tests import chart
from tests.cluster import binaries, packages
from tests.kube import Kube, Object, until

NAMESPACE = "argocd"
GROUP = "finetune-operator.io"
WAVE: Object = {"metadata": {"annotations": {"argocd.argoproj.io/sync-wave": "1"}}}
MANIFESTS = Path(__file__).with_name("argocd.yaml")
SYNC: Object = {"automated": {"prune": True, "selfHeal": True}, "retry": {"limit": 0}}
"""A sync that fails is not tried again: the second try would end as the first, after a pause."""
PATIENCE = 120.0
"""Argo CD works through queues and rate limits, beside everything else that runs here."""


class Repository:
    """A Git repository in a folder. Each application has a folder in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self._git("init", "--quiet", "--initial-branch=main")

    def commit(self, app: str, files: dict[str, Object | None]) -> str:
        """Write files (None: remove one) and commit. Returns the commit."""
        (self.folder / app).mkdir(exist_ok=True)
        for name, content in files.items():
            path = self.folder / app / name
            if content is None:
                path.unlink()
            else:
                path.write_text(yaml.safe_dump(content, sort_keys=False))
        self._git("add", "--all")
        self._git("commit", "--quiet", "--message", f"{app}: {', '.join(files)}")
        return self.head

    def revert(self) -> str:
        """Take the last commit back. Returns the commit."""
        self._git("revert", "--no-edit", "HEAD")
        return self.head

    @property
    def head(self) -> str:
        return self._git("rev-parse", "HEAD").strip()

    def _git(self, *arguments: str) -> str:
        who = ["-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *who, *arguments], cwd=self.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout


@dataclass
class ArgoCD:
    """A running Argo CD."""

    kube: Kube
    repository: Repository
    home: Path
    keys: Object
    """The ConfigMap of the chart."""
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)

    def application(self, name: str, namespace: str = "", **spec: Any) -> None:
        """Create an application of the folder of that name, for a namespace, or that of the same name; it syncs by
        itself."""
        plain = {
            "project": "default",
            "source": {"repoURL": self.repository.folder.as_uri(), "path": name, "targetRevision": "main"},
            "destination": {"server": "https://kubernetes.default.svc", "namespace": namespace or name},
            "syncPolicy": SYNC,
        }
        meta = {"name": name, "namespace": NAMESPACE, **spec.pop("metadata", {})}
        head = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Application", "metadata": meta}
        self.kube.create({**head, "spec": {**plain, **spec}}, NAMESPACE)

    def status(self, name: str) -> Object:
        found: Object = self.kube.get("Application", name, NAMESPACE).get("status", {})
        return found

    def refresh(self, name: str) -> None:
        """Say that there is a commit."""
        asked = {"metadata": {"annotations": {"argocd.argoproj.io/refresh": "normal"}}}
        self.kube.patch("Application", name, asked, NAMESPACE)

    def compared(self, name: str) -> Object:
        """Let Argo CD compare an application now. Returns its status then."""
        self.refresh(name)

        def done() -> Object | None:
            found = self.kube.get("Application", name, NAMESPACE)
            return None if "argocd.argoproj.io/refresh" in found["metadata"].get("annotations", {}) else found

        status: Object = until(f"application {name} is compared", done, timeout=PATIENCE)["status"]
        return status

    def commit(self, name: str, files: dict[str, Object | None]) -> str:
        """Commit files of an application, and say so. Returns the commit."""
        made = self.repository.commit(name, files)
        self.refresh(name)
        return made

    def revert(self, name: str) -> str:
        made = self.repository.revert()
        self.refresh(name)
        return made

    def becomes(
        self, name: str, health: str, sync: str = "Synced", *, commit: str = "", timeout: float = PATIENCE
    ) -> Object:
        """Wait for an application's health and sync status (at a commit). Returns its status."""
        seen: Object = {}

        def there() -> Object | None:
            nonlocal seen
            seen = self.status(name)
            state = seen.get("health", {}).get("status"), seen.get("sync", {}).get("status")
            at = commit in ("", seen.get("sync", {}).get("revision"))
            return seen if state == (health, sync) and at else None

        try:
            return until(f"application {name} is {health} and {sync}", there, timeout)
        except AssertionError as error:
            brief = {key: seen.get(key) for key in ("health", "sync", "conditions", "operationState")}
            raise AssertionError(f"{error}; it is {json.dumps(brief)[:3000]}") from None

    def fails(self, name: str) -> str:
        """Wait until the sync of the last commit fails. Returns the messages about its resources that failed."""

        def failed() -> Object | None:
            operation: Object = self.status(name).get("operationState", {})
            at = operation.get("syncResult", {}).get("revision") == self.repository.head
            return operation if at and operation["phase"] == "Failed" else None

        operation: Object = until(f"the sync of {name} fails", failed, timeout=PATIENCE)
        resources = operation["syncResult"]["resources"]
        return "\n".join(found["message"] for found in resources if found["status"] == "SyncFailed")

    def resources(self, name: str) -> dict[str, Object]:
        """The status of each FineTuneJob of an application: health and message."""
        nodes = self.call("GET", f"applications/{name}/resource-tree").get("nodes", [])
        return {node["name"]: node.get("health", {}) for node in nodes if node["kind"] == "FineTuneJob"}

    def actions(self, app: str, job: str) -> set[str]:
        """The actions that are enabled for a job."""
        listed = self.call("GET", f"applications/{app}/resource/actions", query=self._of(app, job)).get("actions", [])
        return {action["name"] for action in listed if not action.get("disabled")}

    def act(self, app: str, job: str, action: str) -> None:
        """Run an action, as the button in Argo CD's page does."""
        self.call("POST", f"applications/{app}/resource/actions/v2", {**self._of(app, job), "action": action})

    def refreshes(self, app: str, kind: str = "FineTuneJob") -> list[str]:
        """Names of the objects of a kind whose changes made Argo CD compare an application, in order."""
        *log, _unfinished = self.log("application-controller").read_text().split("\n")
        lines = (json.loads(line) for line in log if "caused by object update" in line)
        return [line["name"] for line in lines if line["kind"] == kind and line["application"] == app]

    def admin(self, command: str, fixture: Path, manifest: Object) -> str:
        """What Argo CD's command line prints about an object in a file, with the keys of the chart."""
        keys = fixture.with_name(f"argocd-cm-of-{fixture.name}")
        keys.write_text(yaml.safe_dump(self.keys))
        fixture.write_text(yaml.safe_dump(manifest))
        program = [str(binaries.path("argocd")), "admin", "settings", "resource-overrides", command]
        done = subprocess.run(
            [*program, str(fixture), "--argocd-cm-path", str(keys)],
            env={"PATH": os.environ["PATH"], "HOME": str(self.home)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert done.returncode == 0
        return done.stdout

    def events_seen(self, kind: str = "FineTuneJob") -> int:
        """How many changes of objects of a kind the controller has seen."""
        text = _read(f"http://127.0.0.1:{self.ports['metrics']}/metrics")
        found = re.findall(rf'^argocd_cluster_events_total{{.*kind="{kind}".*}} (\S+)$', text, re.MULTILINE)
        return sum(int(float(count)) for count in found)

    def call(self, method: str, path: str, body: Object | None = None, query: Object | None = None) -> Object:
        """A request to Argo CD's API."""
        url = f"http://127.0.0.1:{self.ports['server']}/api/v1/{path}" + (f"?{urlencode(query)}" if query else "")
        answer: Object = json.loads(_read(url, method, body))
        return answer

    def _of(self, app: str, job: str) -> Object:
        kind = {"group": GROUP, "version": "v1alpha1", "kind": "FineTuneJob"}
        namespace = self.kube.get("Application", app, NAMESPACE)["spec"]["destination"]["namespace"]
        return {"name": app, "appNamespace": NAMESPACE, "namespace": namespace, "resourceName": job, **kind}

    def start(self) -> None:
        """Start it, and wait until it answers."""
        names = ("redis", "repo-server", "repo-metrics", "server", "server-metrics", "metrics")
        self.ports = ports = _free_ports(names)
        redis = ["--redis", f"127.0.0.1:{ports['redis']}"]
        repo = ["--repo-server", f"127.0.0.1:{ports['repo-server']}", "--repo-server-plaintext"]
        cluster = ["--kubeconfig", str(self.kube.kubeconfig), "--namespace", NAMESPACE]
        loopback = ["--address", "127.0.0.1", "--metrics-address", "127.0.0.1"]
        program = packages.find("redis-server")
        assert program is not None
        self._run("redis", program, ["--port", str(ports["redis"]), "--bind", "127.0.0.1", "--save", ""])
        arguments = {
            "repo-server": [*loopback, *_ports(ports["repo-server"], ports["repo-metrics"]), "--disable-tls"],
            # No comparison by the clock: each has a cause that a test knows.
            "application-controller": [*cluster, *repo, "--metrics-port", str(ports["metrics"]), "--app-resync", "0"],
            "server": [*cluster, *repo, *loopback, *_ports(ports["server"], ports["server-metrics"]), "--insecure"],
        }
        arguments["server"].append("--disable-auth")
        for name, given in arguments.items():
            self._run(name, str(binaries.path("argocd")), [*given, *redis, "--loglevel", "debug"])
        until("Argo CD's API answers", self._answers, timeout=PATIENCE)

    def stop(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait(timeout=30)

    def _run(self, name: str, program: str, arguments: list[str]) -> None:
        scratch = self.home / name
        scratch.mkdir()
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(scratch),
            "TMPDIR": str(scratch),
            "ARGOCD_BINARY_NAME": f"argocd-{name}",
            # Its address of the cluster that it runs in means the kubeconfig here.
            "ARGOCD_FAKE_IN_CLUSTER": "true",
            "KUBECONFIG": str(self.kube.kubeconfig),
            "ARGOCD_GPG_ENABLED": "false",
            "ARGOCD_TLS_DATA_PATH": str(scratch),
            "ARGOCD_SSH_DATA_PATH": str(scratch),
            "ARGOCD_PLUGINSOCKFILEPATH": str(scratch),
        }
        with self.log(name).open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [program, *arguments], env=env, cwd=scratch, stdout=log, stderr=subprocess.STDOUT
            )

    def log(self, name: str) -> Path:
        return self.home / f"{name}.log"

    def _answers(self) -> bool:
        for name, process in self.processes.items():
            assert process.poll() is None, f"{name} has ended:\n{self.log(name).read_text()[-3000:]}"
        with contextlib.suppress(OSError):
            return "items" in self.call("GET", "applications")
        return False


@contextlib.contextmanager
def argocd(kube: Kube, helm: Path, home: Path) -> Iterator[ArgoCD]:
    """Argo CD with the customization of the chart, installed as docs/gitops.md says. At the end only its namespace is
    left."""
    packages.ensure(packages.ARGOCD)
    binaries.ensure(("argocd",))
    manifests = list(yaml.safe_load_all(MANIFESTS.read_text()))
    kinds = [manifest for manifest in manifests if manifest["kind"] == "CustomResourceDefinition"]
    for kind in kinds:
        kube.apply(kind, manager="kubectl")
    until("Argo CD's kinds are served", lambda: all(_served(kube, kind["metadata"]["name"]) for kind in kinds))
    for manifest in manifests:
        if manifest not in kinds:
            kube.apply(manifest, manager="kubectl")
    rendered = chart.render(helm, "argocd.enabled=true", f"argocd.namespace={NAMESPACE}")
    keys = chart.only(rendered, "ConfigMap", "argocd-cm")
    kube.apply(keys, manager="finetune-operator")
    made = ArgoCD(kube, Repository(home / "repository"), home, keys)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        names = [kind["metadata"]["name"] for kind in kinds]
        for name in names:
            kube.delete("CustomResourceDefinition", name)
        left = "CustomResourceDefinition"
        until("Argo CD's kinds are gone", lambda: not any(kube.find(left, name) for name in names))


def config_map(name: str, **more: Any) -> Object:
    """Something for Git that is no FineTuneJob."""
    meta = {"name": name, **more.get("metadata", {})}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {"a": "b"}}


def _ports(port: int, metrics: int) -> list[str]:
    return ["--port", str(port), "--metrics-port", str(metrics)]


def _free_ports(names: tuple[str, ...]) -> dict[str, int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in names]
        return {name: listener.getsockname()[1] for name, listener in zip(names, sockets, strict=True)}


def _served(kube: Kube, name: str) -> bool:
    found = kube.get("CustomResourceDefinition", name)
    # A kind that was created a moment ago has null here.
    conditions = found["status"].get("conditions") or []
    return any(c["type"] == "Established" and c["status"] == "True" for c in conditions)


def _read(url: str, method: str = "GET", body: Object | None = None) -> str:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            text: str = answer.read().decode()
            return text
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{method} {url}: {error.code}: {error.read().decode()[:2000]}") from None
