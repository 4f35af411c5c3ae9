"""The peer of `tests.bench.scale`: Kubeflow Trainer with JobSet, built from the Go modules that `modules/` pins.

Both run as processes beside a control plane, with the settings of their own manifests, as far as these matter without a
kubelet: leader election, clients' limits, concurrency. Their webhooks are not installed, which saves the peer most of
its latency. So what JobSet's webhook would fill in stands in the training runtime.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.cluster import go
from tests.cluster.state import cache_root
from tests.kube import ApiError, Kube, Object, until

MODULES = Path(__file__).with_name("modules")
PROGRAMS = {
    "trainer": ("github.com/kubeflow/trainer/v2", "cmd/trainer-controller-manager", "manifests/base/crds"),
    "jobset": ("sigs.k8s.io/jobset", "", "config/components/crd/bases"),
}
"""Module below `modules/` -> Go module, its program, and its CRDs."""
NAMESPACE = "peer-system"
RUNTIME = "bench"
API = "trainer.kubeflow.org/v1alpha1"


def build(module: str) -> Path:
    """The program of a module, built once."""
    pinned = b"".join((MODULES / module / name).read_bytes() for name in ("go.mod", "go.sum"))
    target = cache_root() / "bin" / f"bench-{module}-{hashlib.sha256(pinned).hexdigest()[:12]}" / module
    if target.exists():
        return target
    print(f"building the peer's {module} (once; some minutes)", flush=True)
    package = "/".join(part for part in PROGRAMS[module][:2] if part)
    with go.building("build-bench") as env:
        go.build(MODULES / module, package, target, go.flags(), env)
    return target


def custom_resources(module: str) -> list[Object]:
    """The CRDs of a module's release."""
    source = go.source(MODULES / module, PROGRAMS[module][0])
    files = sorted((source / PROGRAMS[module][2]).glob("*_*.yaml"))
    return [document for file in files for document in yaml.safe_load_all(file.read_text()) if document]


def runtime() -> Object:
    """As the project's own torch runtime, with the defaults of JobSet's webhook."""
    container = {"name": "node", "image": "registry.example/trainer:1"}
    pod = {"restartPolicy": "OnFailure", "containers": [container]}
    job = {
        "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
        "spec": {"completionMode": "Indexed", "template": {"spec": pod}},
    }
    spec = {
        "successPolicy": {"operator": "All"},
        "startupPolicy": {"startupPolicyOrder": "AnyOrder"},
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "replicatedJobs": [{"name": "node", "template": job}],
    }
    return {
        "apiVersion": API,
        "kind": "ClusterTrainingRuntime",
        "metadata": {"name": RUNTIME, "labels": {"trainer.kubeflow.org/framework": "torch"}},
        "spec": {"mlPolicy": {"numNodes": 1, "torch": {"numProcPerNode": "auto"}}, "template": {"spec": spec}},
    }


def train_job(name: str) -> Object:
    resources = {"requests": {"cpu": "4", "memory": "16Gi"}, "limits": {"memory": "16Gi", "nvidia.com/gpu": "1"}}
    trainer = {"numNodes": 1, "command": ["python", "train.py"], "resourcesPerNode": resources}
    spec = {"runtimeRef": {"name": RUNTIME}, "trainer": trainer}
    return {"apiVersion": API, "kind": "TrainJob", "metadata": {"name": name}, "spec": spec}


def submit(kube: Kube, namespace: str, name: str) -> None:
    kube.call("POST", f"apis/{API}/namespaces/{namespace}/trainjobs", train_job(name))


def install(kube: Kube) -> None:
    """CRDs, the runtime, and a ServiceAccount with all rights for both programs."""
    for module in PROGRAMS:
        for manifest in custom_resources(module):
            kube.apply(manifest)
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    kube.apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "peer"}}, NAMESPACE)
    rbac = "rbac.authorization.k8s.io"
    kube.apply(
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "peer"},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"kind": "ServiceAccount", "name": "peer", "namespace": NAMESPACE}],
        }
    )
    path = f"apis/{API}/clustertrainingruntimes"
    until("the runtime is there", lambda: _created(kube, path))


def _created(kube: Kube, path: str) -> bool:
    try:
        kube.call("POST", path, runtime())
    except ApiError as error:
        return error.code == 409
    return True


class Peer:
    """Both processes, started and ended together."""

    def __init__(self, config: Path, home: Path) -> None:
        self.config, self.home = config, home
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def pids(self) -> list[int]:
        """Of both. Ends the program if one of them has ended."""
        for module, process in self._processes.items():
            if process.poll() is not None:
                raise SystemExit(f"{module} ended with {process.returncode}:\n{self._log(module).read_text()[-3000:]}")
        return [process.pid for process in self._processes.values()]

    def _log(self, module: str) -> Path:
        return self.home / f"{module}.log"

    def start(self) -> None:
        common: dict[str, Any] = {"leaderElection": {"leaderElect": True, "resourceNamespace": NAMESPACE}}
        trainer = {
            "apiVersion": "config.trainer.kubeflow.org/v1alpha1",
            "kind": "Configuration",
            # It has no defaults for these, nor for the webhook's host.
            "leaderElection": {
                **common["leaderElection"],
                "resourceName": "trainer.kubeflow.org",
                "resourceLock": "leases",
                "leaseDuration": "15s",
                "renewDeadline": "10s",
                "retryPeriod": "2s",
            },
            "metrics": {"bindAddress": "0"},
            "controller": {"groupKindConcurrency": {"TrainJob.trainer.kubeflow.org": 5}},
            "certManagement": {"enable": False},
            "clientConnection": {"qps": 50, "burst": 100},
        }
        jobset = {
            "apiVersion": "config.jobset.x-k8s.io/v1alpha1",
            "kind": "Configuration",
            **common,
            "internalCertManagement": {"enable": False},
        }
        self._start("trainer", trainer)
        self._start("jobset", jobset, "--metrics-bind-address=0")

    def _start(self, module: str, settings: dict[str, Any], *arguments: str) -> None:
        home = self.home / module
        certificates = home / "k8s-webhook-server" / "serving-certs"
        if not certificates.exists():
            certificates.mkdir(parents=True)
            new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
            out = ["-keyout", str(certificates / "tls.key"), "-out", str(certificates / "tls.crt")]
            subprocess.run([*new, *out, "-days", "2", "-subj", "/CN=localhost"], check=True, capture_output=True)
        settings = {**settings, "webhook": {"port": _free_port(), "host": "127.0.0.1"}}
        settings["health"] = {"healthProbeBindAddress": f"127.0.0.1:{_free_port()}"}
        file = home / "config.yaml"
        file.write_text(yaml.safe_dump(settings))
        env = {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home), "KUBECONFIG": str(self.config)}
        with self._log(module).open("ab") as log:
            command = [str(build(module)), f"--config={file}", "--zap-log-level=error", *arguments]
            self._processes[module] = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)

    def stop(self) -> None:
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self._processes.values():
            process.wait(timeout=600)
        self._processes.clear()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port
