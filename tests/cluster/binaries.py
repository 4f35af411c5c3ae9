"""The cluster's programs, built from pinned Go modules and kept in the cache.

Called by cluster.py and the `build` command. `modules/<module>/go.mod` pins what is built. It contains no Go code of
ours.
Invariants: the name of the folder with a module's programs is a digest of everything that goes into them, so it never
has to be invalidated. A program appears there complete or not at all, because several checkouts share the folder.
"""

from __future__ import annotations

import hashlib
import platform
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.cluster import go
from tests.cluster.state import ClusterError, cache_root

MODULES = Path(__file__).with_name("modules")

# Program -> (module, Go package). The programs that are needed first come first.
PROGRAMS = {
    "etcd": ("etcd", "go.etcd.io/etcd/server/v3"),
    "kube-apiserver": ("kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver"),
    "kube-controller-manager": ("kubernetes", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    "kubectl": ("kubernetes", "k8s.io/kubernetes/cmd/kubectl"),
    "helm": ("helm", "helm.sh/helm/v3/cmd/helm"),
    "kubeconform": ("audit", "github.com/yannh/kubeconform/cmd/kubeconform"),
    "kube-score": ("audit", "github.com/zegl/kube-score/cmd/kube-score"),
    "kubelet": ("kubernetes", "k8s.io/kubernetes/cmd/kubelet"),
    "kube-scheduler": ("kubernetes", "k8s.io/kubernetes/cmd/kube-scheduler"),
    "kube-proxy": ("kubernetes", "k8s.io/kubernetes/cmd/kube-proxy"),
    "registry": ("registry", "github.com/distribution/distribution/v3/cmd/registry"),
    "local-path-provisioner": ("storage", "github.com/rancher/local-path-provisioner"),
    "coredns": ("coredns", "github.com/coredns/coredns"),
    "kueue": ("kueue", "sigs.k8s.io/kueue/cmd/kueue"),
    "argocd": ("argocd", "github.com/argoproj/argo-cd/v3/cmd"),
}
CONTROL_PLANE = tuple(PROGRAMS)[:5]
EVERYTHING = tuple(PROGRAMS)
CLUSTER = tuple(program for program in PROGRAMS if program not in ("kubeconform", "kube-score", "argocd", "kueue"))
"""What a cluster with nodes runs. Only tests run the others. Argo CD takes as long to build as half of the programs,
and Kueue about five minutes of a CPU."""


def path(program: str) -> Path:
    module = PROGRAMS[program][0]
    return cache_root() / "bin" / f"{module}-{key(module)}" / program


def key(module: str) -> str:
    parts = [(MODULES / module / name).read_bytes() for name in ("go.mod", "go.sum")]
    parts.append(" ".join([*_flags(module), platform.machine()]).encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


def ensure(programs: tuple[str, ...]) -> list[str]:
    """Build the missing programs. Returns their names."""
    if all(path(program).exists() for program in programs):
        return []
    with go.building("build") as env:
        missing = [program for program in programs if not path(program).exists()]
        if missing:
            print(f"  building {', '.join(missing)} (only once; about ten minutes on two cores)", flush=True)
        # The programs of a module share most of their compiled packages, so they are built one after the other. Modules
        # share nothing, so two of them are built at a time: a single build leaves cores idle while it links or
        # downloads.
        modules = list(dict.fromkeys(PROGRAMS[program][0] for program in missing))
        with ThreadPoolExecutor(max_workers=2) as pool:
            for done in [pool.submit(_build_module, env, module, missing) for module in modules]:
                done.result()
    return missing


def _build_module(env: dict[str, str], module: str, programs: list[str]) -> None:
    for program in programs:
        if PROGRAMS[program][0] == module:
            began = time.monotonic()
            go.build(MODULES / module, PROGRAMS[program][1], path(program), _flags(module), env)
            print(f"  built {program:<26}{time.monotonic() - began:6.1f} s", flush=True)


def _flags(module: str) -> list[str]:
    return go.flags(*(f"-X={name}={value}" for name, value in _versions(module).items()))


def _versions(module: str) -> dict[str, str]:
    """Variables that get their value when a program is linked. Without them, Kubernetes reports v0.0.0, and `helm
    template` takes the cluster for Kubernetes 1.20."""
    if module == "kubernetes":
        version, major, minor = _pinned(module, "k8s.io/kubernetes")
        values = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
        return {f"k8s.io/component-base/version.{name}": value for name, value in values.items()}
    if module == "helm":
        release, client = _pinned(module, "helm.sh/helm/v3"), _pinned(module, "k8s.io/client-go")
        # Release 1.x of Kubernetes has version 0.x of its client.
        kubernetes = {"k8sVersionMajor": "1", "k8sVersionMinor": client[2]}
        packages = ("helm.sh/helm/v3/pkg/chartutil", "helm.sh/helm/v3/pkg/lint/rules")
        return {"helm.sh/helm/v3/internal/version.version": release[0]} | {
            f"{package}.{name}": value for package in packages for name, value in kubernetes.items()
        }
    return {}


def _pinned(module: str, dependency: str) -> tuple[str, str, str]:
    """The version of a dependency, its major and its minor number."""
    text = (MODULES / module / "go.mod").read_text()
    found = re.search(rf"^\s*{re.escape(dependency)} (v(\d+)\.(\d+)\.\d+)", text, re.MULTILINE)
    if found is None:
        raise ClusterError(f"{MODULES / module / 'go.mod'} does not pin a version of {dependency}")
    return found[1], found[2], found[3]
