"""Whether this machine can run the cluster. Checked before anything is installed or started.

Called by cluster.py. `CannotRun` becomes exit code 3, so callers can distinguish it from a cluster that failed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from tests.cluster import packages
from tests.cluster.state import ClusterError, cache_root

GB = 10**9
CONTROL_PLANE_BYTES, CLUSTER_BYTES = 1 * GB, 5 * GB
"""The least free space that a start can do with, once programs and images are there. Without it etcd and the images
fail in ways that do not speak of a disk."""

OTHERWISE = """What you can do instead:
  make demo CONTEXT=<a context of your kubeconfig>   use your own cluster (1.31 or newer)
  make demo-laptop                                   run the same FineTuneJob with the trainer alone"""


class CannotRun(ClusterError):
    def __init__(self, why: str) -> None:
        super().__init__(f"The local Kubernetes cannot run here: {why}\n{OTHERWISE}")


def check(control_plane_only: bool) -> None:
    if not sys.platform.startswith("linux"):
        raise CannotRun(f"it needs Linux, and this is {sys.platform}.")
    _check_disk(CONTROL_PLANE_BYTES if control_plane_only else CLUSTER_BYTES)
    if control_plane_only:
        return
    if os.geteuid() != 0:
        raise CannotRun("its nodes need root (namespaces, mounts, cgroups), and you are not root.")
    unshare = [packages.find("unshare") or "unshare", "--net", "--mount", "--pid", "--fork", "--propagation=private"]
    tried = subprocess.run([*unshare, "mount", "-t", "tmpfs", "tmpfs", "/run"], capture_output=True, text=True)
    if tried.returncode != 0:
        why = tried.stderr.strip()
        raise CannotRun(f"even root cannot create namespaces and mounts here ({why}). A container must be privileged.")


def _check_disk(needed: int) -> None:
    folder = cache_root()
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CannotRun(
            f"the disk of {folder} has {free / GB:.1f} GB free, and it needs {needed / GB:g} GB."
            " Free some: `python3 -m tests.cluster purge` removes what earlier clusters left there."
        )
