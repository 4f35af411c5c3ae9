"""Prometheus and promtool: the machine's own, or from Debian's package, unpacked into the cache and not installed.

The package wants a service and a user, which no test needs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.cluster import packages
from tests.cluster.state import ClusterError, cache_root, lock

PACKAGE = "prometheus"


def program(name: str) -> Path:
    """prometheus or promtool. Raises ClusterError."""
    if own := packages.find(name):
        return Path(own)
    unpacked = cache_root() / "debian" / PACKAGE
    with lock("prometheus"):
        if not unpacked.exists():
            _unpack(unpacked)
    return unpacked / "usr" / "bin" / name


def _unpack(target: Path) -> None:
    if packages.find("apt-get") is None or packages.find("dpkg") is None:
        raise ClusterError(
            f"{PACKAGE} is not on the PATH, and this is no Debian to download it from. Install {PACKAGE}."
        )
    work = target.with_name(f".{PACKAGE}.{os.getpid()}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        done = _run(["apt-get", "download", PACKAGE], work)
        if done.returncode != 0 and os.geteuid() == 0:
            _run(["apt-get", "update", "-qq"], work)
            done = _run(["apt-get", "download", PACKAGE], work)
        if done.returncode != 0:
            raise ClusterError(
                f"apt-get download {PACKAGE} failed. Install {PACKAGE}, or fix the cause and try again:\n{done.stderr}"
            )
        [archive] = work.glob("*.deb")
        done = _run(["dpkg", "-x", archive.name, "."], work)
        if done.returncode != 0:
            raise ClusterError(f"dpkg -x {archive.name} failed:\n{done.stderr}")
        archive.unlink()
        work.replace(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _run(command: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=directory, capture_output=True, text=True)
