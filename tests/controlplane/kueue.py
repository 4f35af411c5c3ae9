"""The real Kueue as a process, with its CRDs and webhooks, for the tests of queues.

Everything but the configuration comes from the module's source: what is tested against is what its release installs.
Its webhooks see only namespaces with the label `kueue-tests`, so that other tests of the same control plane do not
notice it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import binaries, go
from tests.kube import ApiError, Kube, Object, until

NAMESPACE = "kueue-system"
SEEN = "kueue-tests"
"""Label of the namespaces that Kueue and its webhooks see."""
FLAVOR = "plain"
JOB_UID, QUEUE = "kueue.x-k8s.io/job-uid", "kueue.x-k8s.io/queue-name"
PATIENCE = 90.0
GROUP = "kueue.x-k8s.io/v1beta2"
_KINDS = ("job", "workload", "clusterqueue", "resourceflavor", "cohort")
"""Kinds that Kueue has to look at here; it has webhooks for many more."""


@dataclass
class Kueue:
    """A running Kueue."""

    kube: Kube
    home: Path
    port: int
    inside: tuple[str, ...] = ()
    """Command that runs another where the API server finds it at 127.0.0.1."""
    process: subprocess.Popen[bytes] | None = None

    def queue(self, namespace: str, gpus: int, name: str = "team") -> str:
        """A LocalQueue with a quota of its own. Returns the name of its ClusterQueue."""
        made = f"{namespace}-{name}"
        self.kube.create({**_head("ClusterQueue", made), "spec": self.quota(gpus)})
        local = {**_head("LocalQueue", name), "spec": {"clusterQueue": made}}
        self.kube.create(local, namespace)
        return made

    @staticmethod
    def quota(gpus: int) -> Object:
        """The spec of a ClusterQueue with so many GPUs and plenty of everything else."""
        amounts = {"cpu": 1000, "memory": "1000Gi", "nvidia.com/gpu": gpus}
        resources = [{"name": name, "nominalQuota": amount} for name, amount in amounts.items()]
        return {
            "namespaceSelector": {},
            "preemption": {"withinClusterQueue": "LowerPriority"},
            "resourceGroups": [
                {"coveredResources": list(amounts), "flavors": [{"name": FLAVOR, "resources": resources}]}
            ],
        }

    def workload(self, namespace: str, job: Object) -> Object:
        """The Workload of a Job, once it is there."""
        label = f"{JOB_UID}={job['metadata']['uid']}"
        found: list[Object] = until("the Job has a Workload", lambda: self.kube.list("Workload", namespace, label))
        return found[0]

    def change(self, namespace: str, job: Object, **spec: Any) -> None:
        """Change the spec of a Job's Workload, as an administrator does."""
        name = self.workload(namespace, job)["metadata"]["name"]
        self.kube.patch("Workload", name, {"spec": spec}, namespace)

    def evict(self, namespace: str, job: Object) -> None:
        """Take the quota away by stopping the ClusterQueue and draining it."""
        queue = self.workload(namespace, job)["spec"]["queueName"]
        made = f"{namespace}-{queue}"
        self.kube.patch("ClusterQueue", made, {"spec": {"stopPolicy": "HoldAndDrain"}})

    def release(self, namespace: str, queue: str = "team") -> None:
        """Let a drained ClusterQueue admit again."""
        self.kube.patch("ClusterQueue", f"{namespace}-{queue}", {"spec": {"stopPolicy": "None"}})

    def start(self, **settings: Any) -> None:
        """Start it, and wait until its webhooks answer."""
        configuration = {
            "apiVersion": "config.kueue.x-k8s.io/v1beta2",
            "kind": "Configuration",
            "namespace": NAMESPACE,
            "health": {"healthProbeBindAddress": "127.0.0.1:0"},
            "metrics": {"bindAddress": "0"},
            "webhook": {"host": "127.0.0.1", "port": self.port, "certDir": "/certs"},
            "leaderElection": {"leaderElect": False},
            "internalCertManagement": {"enable": False},
            "integrations": {"frameworks": ["batch/job"]},
            "managedJobsNamespaceSelector": {"matchExpressions": [{"key": SEEN, "operator": "Exists"}]},
            "featureGates": {"VisibilityOnDemand": False},  # see visibility.py
            **settings,
        }
        (self.home / "configuration.yaml").write_text(yaml.safe_dump(configuration))
        shutil.copy(self.kube.kubeconfig, self.home / "kubeconfig")
        arguments = ["--config=/configuration.yaml", "--kubeconfig=/kubeconfig", "--zap-log-level=2"]
        user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.inside, "unshare", *user, f"--root={self.home}", "/kueue", *arguments],
                env={"PATH": os.environ["PATH"], "HOME": "/"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        until("Kueue's webhooks answer", self._answers, timeout=PATIENCE)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(timeout=30)

    @property
    def log(self) -> Path:
        return self.home / "kueue.log"

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"Kueue has ended:\n{self.log.read_text()[-4000:]}"
        with contextlib.suppress(ApiError):
            return bool(self.kube.create({**_head("ResourceFlavor", "probe"), "spec": {}}, dry_run=True))
        return False


@contextlib.contextmanager
def kueue(kube: Kube, home: Path, *inside: str) -> Iterator[Kueue]:
    """Kueue with a flavor without conditions. At the end nothing of it is left. ``inside``: see the field."""
    binaries.ensure(("kueue",))
    source = go.source(binaries.MODULES / "kueue", "sigs.k8s.io/kueue") / "config" / "components"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    authority = _certificate(home / "certs")
    # The program reads these paths, whatever its configuration says: its root is our folder. It needs no libraries.
    for folder in ("etc/kueue/metrics/certs", "visibility"):
        shutil.copytree(home / "certs", home / folder)
    (home / "tmp").mkdir()
    shutil.copy(binaries.path("kueue"), home / "kueue")
    crds = [_crd(file, port, authority) for file in sorted((source / "crd" / "bases").glob("*.yaml"))]
    hooks = [
        _hooks(manifest, port, authority)
        for manifest in yaml.safe_load_all((source / "webhook" / "manifests.yaml").read_text())
    ]
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    for crd in crds:
        kube.apply(crd)
    until("Kueue's kinds are served", lambda: _served(kube, crds), timeout=PATIENCE)
    made = Kueue(kube, home, port, inside)
    try:
        for hook in hooks:
            kube.apply(hook)
        made.start()
        kube.apply({**_head("ResourceFlavor", FLAVOR), "spec": {}})
        yield made
    finally:
        made.stop()
        _remove(kube, hooks, crds)


def _remove(kube: Kube, hooks: list[Object], crds: list[Object]) -> None:
    """Delete its kinds with all objects. Without it nobody takes its finalizers away."""
    for hook in hooks:
        kube.delete(hook["kind"], hook["metadata"]["name"])
    for kind in ("Workload", "LocalQueue", "ClusterQueue", "ResourceFlavor"):
        for found in kube.list(kind):
            meta = found["metadata"]
            with contextlib.suppress(ApiError):
                kube.patch(kind, meta["name"], {"metadata": {"finalizers": None}}, meta.get("namespace"))
    for crd in crds:
        kube.delete(crd["kind"], crd["metadata"]["name"])
    names = [crd["metadata"]["name"] for crd in crds]
    until("Kueue's kinds are gone", lambda: not any(kube.find("CustomResourceDefinition", name) for name in names))


def _crd(file: Path, port: int, authority: str) -> Object:
    crd: Object = yaml.safe_load(file.read_text())
    if len(crd["spec"]["versions"]) > 1:
        client = {"url": f"https://127.0.0.1:{port}/convert", "caBundle": authority}
        webhook = {"clientConfig": client, "conversionReviewVersions": ["v1"]}
        crd["spec"]["conversion"] = {"strategy": "Webhook", "webhook": webhook}
    return {key: part for key, part in crd.items() if key != "status"}


def _hooks(manifest: Object, port: int, authority: str) -> Object:
    kept = [hook for hook in manifest["webhooks"] if hook["name"].split(".")[0][1:] in _KINDS]
    for hook in kept:
        path = hook["clientConfig"]["service"]["path"]
        hook["clientConfig"] = {"url": f"https://127.0.0.1:{port}{path}", "caBundle": authority}
        if hook["name"][1:] == "job.kb.io":
            hook["namespaceSelector"] = {"matchExpressions": [{"key": SEEN, "operator": "Exists"}]}
    name = f"kueue-{manifest['kind'].removesuffix('WebhookConfiguration').lower()}"
    return {**manifest, "metadata": {"name": name}, "webhooks": kept}


def _certificate(folder: Path) -> str:
    """Make the certificate of the webhooks, which signs itself. Returns it as a CA bundle."""
    folder.mkdir(parents=True)
    certificate, key = folder / "tls.crt", folder / "tls.key"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "7",
    ]
    named = ["-subj", "/CN=kueue", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out"]
    done = subprocess.run([*command, *named, str(certificate)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return b64encode(certificate.read_bytes()).decode()


def _head(kind: str, name: str) -> Object:
    return {"apiVersion": GROUP, "kind": kind, "metadata": {"name": name}}


def _served(kube: Kube, crds: list[Object]) -> bool:
    """Whether the API server also says that it serves them. For a while it refuses requests about so large a schema."""
    version = GROUP.partition("/")[2]
    asked = kube.with_headers({"Accept": "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"})
    groups = {group["metadata"]["name"]: group for group in asked.call("GET", "apis")["items"]}
    versions = groups.get(GROUP.partition("/")[0], {}).get("versions", [])
    listed = {resource["resource"] for one in versions if one["version"] == version for resource in one["resources"]}
    plurals = {crd["spec"]["names"]["plural"] for crd in crds}
    with contextlib.suppress(ApiError):
        return plurals <= listed and all(kube.call("GET", f"apis/{GROUP}/{plural}", limit="1") for plural in plurals)
    return False
