"""The cluster's programs, built from pinned Go modules and kept in the cache.

Called by cluster.py and the `build` command. `modules/<module>/go.mod` pins what is built and holds no Go code of ours.
Invariant: the folder of a module's programs is named after all that goes into them, so it never has to be
invalidated, and a program appears there whole or not at all: several checkouts share it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.cluster import packages
from tests.cluster.state import ClusterError, cache_root, lock

MODULES = Path(__file__).with_name("modules")

# Program -> (module, Go package), in the order in which somebody who waits wants them.
PROGRAMS = {
    "etcd": ("etcd", "go.etcd.io/etcd/server/v3"),
    "kube-apiserver": ("kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver"),
    "kube-controller-manager": ("kubernetes", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    "kubectl": ("kubernetes", "k8s.io/kubernetes/cmd/kubectl"),
    "helm": ("helm", "helm.sh/helm/v3/cmd/helm"),
    "kubelet": ("kubernetes", "k8s.io/kubernetes/cmd/kubelet"),
    "kube-scheduler": ("kubernetes", "k8s.io/kubernetes/cmd/kube-scheduler"),
    "kube-proxy": ("kubernetes", "k8s.io/kubernetes/cmd/kube-proxy"),
    "registry": ("registry", "github.com/distribution/distribution/v3/cmd/registry"),
    "local-path-provisioner": ("storage", "github.com/rancher/local-path-provisioner"),
    "coredns": ("coredns", "github.com/coredns/coredns"),
}
CONTROL_PLANE = tuple(PROGRAMS)[:5]
EVERYTHING = tuple(PROGRAMS)


def path(program: str) -> Path:
    module = PROGRAMS[program][0]
    return cache_root() / "bin" / f"{module}-{key(module)}" / program


def key(module: str) -> str:
    parts = [(MODULES / module / name).read_bytes() for name in ("go.mod", "go.sum")]
    parts.append(" ".join([*_flags(module), platform.machine()]).encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


def ensure(programs: tuple[str, ...]) -> list[str]:
    """Build what is missing; the names of the programs that were."""
    if all(path(program).exists() for program in programs):
        return []
    with lock("build"):
        missing = [program for program in programs if not path(program).exists()]
        if missing:
            print(f"  building {', '.join(missing)}; once, in about ten minutes on two cores", flush=True)
        go = packages.go()
        # The programs of a module share most of what is compiled; two modules share nothing, and one alone leaves cores
        # idle while it links or downloads.
        modules = list(dict.fromkeys(PROGRAMS[program][0] for program in missing))
        with ThreadPoolExecutor(max_workers=2) as pool:
            for done in [pool.submit(_build_module, go, module, missing) for module in modules]:
                done.result()
    return missing


def _build_module(go: str, module: str, programs: list[str]) -> None:
    for program in programs:
        if PROGRAMS[program][0] == module:
            began = time.monotonic()
            _build(go, program)
            print(f"  built {program:<26}{time.monotonic() - began:6.1f} s", flush=True)


def _build(go: str, program: str) -> None:
    module, package = PROGRAMS[program]
    target = path(program)
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(f".{program}.{os.getpid()}")
    # The toolchain is the one we chose: no other is fetched, and no workspace file above the checkout is obeyed.
    env = {**os.environ, "CGO_ENABLED": "0", "GOTOOLCHAIN": "local", "GOWORK": "off"}
    command = [go, "build", *_flags(module), "-o", str(unfinished), package]
    done = subprocess.run(command, cwd=MODULES / module, env=env, capture_output=True, text=True)
    if done.returncode != 0:
        unfinished.unlink(missing_ok=True)
        raise ClusterError(f"building {program} failed:\n{done.stderr[-3000:]}")
    unfinished.replace(target)


def _flags(module: str) -> list[str]:
    linked = ["-s", "-w"]
    if module == "kubernetes":
        # Kubernetes reads its own version from what the linker was told; without it, everything says v0.0.0.
        found = re.search(
            r"^\s*k8s\.io/kubernetes (v(\d+)\.(\d+)\.\d+)", (MODULES / module / "go.mod").read_text(), re.MULTILINE
        )
        if found is None:
            raise ClusterError(f"{MODULES / module / 'go.mod'} does not say which k8s.io/kubernetes it wants")
        names = ("gitVersion", "gitMajor", "gitMinor")
        linked += [
            f"-X=k8s.io/component-base/version.{name}={value}"
            for name, value in zip(names, found.groups(), strict=True)
        ]
    # No debug information: it would be made for each package, and then be stripped.
    return ["-trimpath", "-buildvcs=false", "-gcflags=all=-dwarf=false", f"-ldflags={' '.join(linked)}"]
