"""Can this machine run the cluster? Asked before anything is installed or started.

Called by cluster.py. `CannotRun` becomes exit code 3, which callers tell from a cluster that failed.
"""

from __future__ import annotations

import os
import subprocess
import sys

from tests.cluster import packages
from tests.cluster.state import ClusterError

OTHERWISE = """What you can do instead:
  make demo CONTEXT=<a context of your kubeconfig>   use a cluster of your own (1.31 or newer)
  make demo-laptop                                   run the same FineTuneJob by the trainer alone"""


class CannotRun(ClusterError):
    def __init__(self, why: str) -> None:
        super().__init__(f"The local Kubernetes can't run here: {why}\n{OTHERWISE}")


def check(control_plane_only: bool) -> None:
    if not sys.platform.startswith("linux"):
        raise CannotRun(f"it needs Linux, and this is {sys.platform}.")
    if control_plane_only:
        return
    if os.geteuid() != 0:
        raise CannotRun("its nodes need root (namespaces, mounts, cgroups), and you are not root.")
    unshare = [packages.find("unshare") or "unshare", "--net", "--mount", "--pid", "--fork", "--propagation=private"]
    tried = subprocess.run([*unshare, "mount", "-t", "tmpfs", "tmpfs", "/run"], capture_output=True, text=True)
    if tried.returncode != 0:
        why = tried.stderr.strip()
        raise CannotRun(f"even root may not make namespaces and mounts here ({why}); a container must be privileged.")
