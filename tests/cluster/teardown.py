"""Take a cluster down and check that nothing of it is left.

Called by the command line and by Cluster.down. It removes processes, namespaces, mounts, the link, cgroups, volumes and
the objects. It keeps the built programs, the registry's storage and the nodes' unpacked images, because making them
again takes minutes. `purge` removes those.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from tests.cluster import network, process, sandbox
from tests.cluster import state as states
from tests.cluster.state import ClusterError, State, cache_root

# The last started process is stopped first. A control plane only has just these.
ORDER = ("kube-controller-manager", "kube-apiserver", "etcd")


def down(state: State) -> None:
    with states.lock(state.id):
        namespaces: set[str] = set()
        # Somebody may have added nodes since the state was read.
        added = {int(name.removeprefix("node-")) for name in process.names(state) if name.startswith("node-")}
        nodes = [] if state.control_plane_only else sorted(added | set(range(1, state.nodes + 1)))
        for node in nodes:
            holder = process.read(state, f"node-{node}")
            if holder and process.alive(holder):
                namespaces |= sandbox.namespaces(holder["pid"])
                sandbox.kill(state, node)
        for name in ORDER:
            # No grace period: their last writes are not needed.
            process.stop(state, name, grace=0)
        if nodes:
            network.remove(state)
            for node in nodes:
                sandbox.remove_cgroups(state, node)
        left = _wait_until_removed(state, namespaces)
        if left:
            raise ClusterError(
                f"cluster {state.name} is down, but these parts are left:\n" + "\n".join(f"  {part}" for part in left)
            )
        _remove_files(state)


def _wait_until_removed(state: State, namespaces: set[str], patience: float = 15.0) -> list[str]:
    """Wait for the kernel to end the namespaces. Returns what is left."""
    deadline = time.monotonic() + patience
    while (left := leftovers(state, namespaces)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def leftovers(state: State, namespaces: set[str]) -> list[str]:
    """The parts of the cluster that still exist, each with its kind and name."""
    left = [f"process {name}" for name in process.names(state) if process.running(state, name)]
    left += [f"process {pid} in a node's namespaces" for pid in sandbox.members(namespaces)]
    left += [f"mount {mount}" for mount in _mounts_below(state.directory)]
    if not state.control_plane_only:
        left += [f"link {network.link(state)}"] * network.link_left(state)
        for node in states.NODES_ALLOWED:
            left += [f"cgroup {path}" for path in sandbox.cgroups_left(state, node)]
    return left


def _mounts_below(directory: Path) -> list[str]:
    mounts = (
        line.split()[1].encode().decode("unicode_escape") for line in Path("/proc/mounts").read_text().splitlines()
    )
    return [mount for mount in mounts if Path(mount).is_relative_to(directory)]


def _remove_files(state: State) -> None:
    kept = {f"node-{node}" for node in states.NODES_ALLOWED}
    for path in state.directory.iterdir():
        if path.name in kept:
            for part in path.iterdir():
                if part.name != "containerd":
                    _remove(part)
        elif path.name != "state.json":
            _remove(path)
    # Last, because `down` can be called again as long as this file exists.
    (state.directory / "state.json").unlink()
    if not any(state.directory.iterdir()):
        state.directory.rmdir()
    shutil.rmtree(state.kubeconfig.parent, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def purge() -> None:
    """Remove the whole cache. Refused while a cluster is up. Images in buildah's storage stay."""
    running = [f"{state.name} (of {state.checkout})" for state in states.all_clusters()]
    if running:
        raise ClusterError(f"these clusters are up: {', '.join(running)}. Take them down first")
    shutil.rmtree(cache_root(), ignore_errors=True)
