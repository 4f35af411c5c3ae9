"""The sandbox of a node: network, mount and PID namespaces held by one process, and the cgroups of its pods.

Called by cluster.py and teardown.py. Kubelet, containerd, shims and containers all run inside. When the holder ends,
all of them end, and their mounts and interfaces disappear: the kernel cleans up, whatever state they were in.
Invariant: the paths that are built into the programs (/run, /var/lib, /var/log) belong to the node. The rest of the
file system is the machine's.
"""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import time
from pathlib import Path

from tests.cluster import packages, process
from tests.cluster.state import ClusterError, State, cache_root

PODS_SHARE = 2
"""On a busy machine, the pods of a node together get as much CPU as so many processes outside. By default that is one,
and then probes fail, and the operator is restarted again and again."""

# The cache is moved aside and back, because it may be below a folder that the script hides.
# The holder becomes the parent of orphans of the node. It ignores SIGCHLD at the end, so that the kernel reaps them.
SETUP = """
set -eu
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/cache /run/lock
mount --rbind {cache} /run/cache
mount -t tmpfs -o mode=755 tmpfs /var/lib
mkdir -p {cache} /var/lib/kubelet
mount --move /run/cache {cache}
mount --bind {node}/kubelet /var/lib/kubelet
mount --bind {node}/log /var/log
touch /run/node-is-set-up
trap '' CHLD
exec sleep infinity
"""


def ensure(state: State, node: int) -> int:
    """Start the process that holds the node's namespaces, unless it runs. Returns its id."""
    directory = state.node_directory(node)
    for name in ("kubelet", "log", "containerd"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    make_cgroups(state, node)
    script = SETUP.format(cache=shlex.quote(str(cache_root())), node=shlex.quote(str(directory)))
    argv = [
        _program("unshare"),
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "--propagation=private",
    ]
    process.ensure(state, f"node-{node}", [*argv, "/bin/sh", "-c", script])
    record = process.read(state, f"node-{node}")
    assert record is not None
    holder: int = record["pid"]
    ready = enter(holder, ["test", "-e", "/run/node-is-set-up"])
    process.wait_until(
        state,
        f"node {node} has its namespaces",
        lambda: subprocess.run(ready, capture_output=True).returncode == 0,
        needs=[f"node-{node}"],
    )
    return holder


def kill(state: State, node: int) -> None:
    """Kill the holder. It is the init of the node's PID namespace, so all processes in it end at once."""
    process.stop(state, f"node-{node}", grace=0)


def enter(holder: int, argv: list[str]) -> list[str]:
    """The command line that runs a program inside the node and waits for it."""
    namespaces = f"/proc/{holder}/ns"
    return [
        _program("nsenter"),
        f"--net={namespaces}/net",
        f"--pid={namespaces}/pid_for_children",
        f"--mount={namespaces}/mnt",
        "--",
        *argv,
    ]


def run(holder: int, argv: list[str], *, check: bool = True) -> str:
    done = subprocess.run(enter(holder, argv), capture_output=True, text=True)
    if check and done.returncode != 0:
        raise ClusterError(f"inside the node, `{shlex.join(argv)}` failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def _program(name: str) -> str:
    path = packages.find(name)
    if path is None:
        raise ClusterError(f"{name} is missing on this machine. Install the Debian package util-linux")
    return path


def members(holder_namespaces: set[str]) -> list[int]:
    """The processes in these namespaces (in the notation of /proc: `pid:[4026532…]`)."""
    pids = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if {(entry / "ns" / kind).readlink().name for kind in ("pid", "mnt", "net")} & holder_namespaces:
                pids.append(int(entry.name))
    return pids


def namespaces(holder: int) -> set[str]:
    with contextlib.suppress(OSError):
        return {Path(f"/proc/{holder}/ns/{kind}").readlink().name for kind in ("pid_for_children", "mnt", "net")}
    return set()


def cgroup_name(state: State, node: int) -> str:
    return f"finetune-{state.id}-{node}"


def _hierarchies() -> list[tuple[str, Path]]:
    """Mounted cgroup hierarchies as (cgroup or cgroup2, mount point)."""
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return [(kind, Path(where)) for _, where, kind, *_ in mounts if kind in ("cgroup", "cgroup2")]


def make_cgroups(state: State, node: int) -> None:
    """Make a separate root for each kubelet: two kubelets with the same root would clean up each other's pods."""
    for kind, mount in _hierarchies():
        group = mount / cgroup_name(state, node)
        if kind == "cgroup2":
            for controller in (mount / "cgroup.controllers").read_text().split():
                # A separate write for each controller: a controller that cannot be delegated must not block the others.
                with contextlib.suppress(OSError):
                    (mount / "cgroup.subtree_control").write_text(f"+{controller}")
        group.mkdir(exist_ok=True)
        for setting in ("cpuset.cpus", "cpuset.mems"):
            # In version 1, a new cpuset has no CPUs and no memory nodes, and accepts no process.
            if kind == "cgroup" and (group / setting).exists() and not (group / setting).read_text().strip():
                (group / setting).write_text((mount / setting).read_text())
        for setting, share_of_a_process in (("cpu.shares", 1024), ("cpu.weight", 100)):
            if (group / setting).exists():
                (group / setting).write_text(str(PODS_SHARE * share_of_a_process))


def cgroups_left(state: State, node: int) -> list[Path]:
    roots = [mount / cgroup_name(state, node) for _, mount in _hierarchies()]
    return [root for root in roots if root.exists()]


def remove_cgroups(state: State, node: int, patience: float = 10.0) -> None:
    """Remove the cgroups, leaves first. A cgroup stays busy for a moment after its last process is gone."""
    deadline = time.monotonic() + patience
    while left := cgroups_left(state, node):
        for root in left:
            for group in sorted((path for path in root.rglob("*") if path.is_dir()), reverse=True):
                with contextlib.suppress(OSError):
                    group.rmdir()
            with contextlib.suppress(OSError):
                root.rmdir()
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)
