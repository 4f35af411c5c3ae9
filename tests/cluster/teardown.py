"""Take a cluster down and look whether anything of it is left.

Called by the command line and by Cluster.down. What goes: processes, namespaces, mounts, the link, cgroups, volumes,
the objects. What stays: built programs, the registry's storage and the nodes' unpacked images, since making those
again takes minutes; `purge` removes them.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from tests.cluster import network, process, sandbox
from tests.cluster import state as states
from tests.cluster.state import ClusterError, State, cache_root

# Last started, first stopped; the control plane alone has only these.
ORDER = ("kube-controller-manager", "kube-apiserver", "etcd")


def down(state: State) -> None:
    with states.lock(state.id):
        namespaces: set[str] = set()
        nodes = [] if state.control_plane_only else list(range(1, state.nodes + 1))
        for node in nodes:
            holder = process.read(state, f"node-{node}")
            if holder and process.alive(holder):
                namespaces |= sandbox.namespaces(holder["pid"])
                sandbox.kill(state, node)
        for name in ORDER:
            # Nothing that they would still write is wanted.
            process.stop(state, name, grace=0)
        if nodes:
            network.remove(state)
            for node in nodes:
                sandbox.remove_cgroups(state, node)
        left = _wait_for_nothing(state, namespaces)
        if left:
            raise ClusterError(
                f"cluster {state.name} is down, but this is left of it:\n" + "\n".join(f"  {one}" for one in left)
            )
        _remove_files(state)


def _wait_for_nothing(state: State, namespaces: set[str], patience: float = 15.0) -> list[str]:
    """The kernel takes a moment to end a namespace."""
    deadline = time.monotonic() + patience
    while (left := leftovers(state, namespaces)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def leftovers(state: State, namespaces: set[str]) -> list[str]:
    """What a person would find of the cluster, each with its kind and name."""
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
    # Last: as long as it is there, `down` can be called again.
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
    """Remove everything that is cached; refused while a cluster is up. Buildah's images are the machine's, and stay."""
    found = [f"{state.name} (of {state.checkout})" for state in states.everything()]
    if found:
        raise ClusterError(f"these clusters are up: {', '.join(found)}; take them down first")
    shutil.rmtree(cache_root(), ignore_errors=True)
