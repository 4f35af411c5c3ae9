"""Start a cluster, and the object through which tests and the demo use it.

Called by the command line and by tests. `up` checks each part and starts the parts that are missing or differ. So it
completes an interrupted start, adds a second node, and takes seconds if everything runs already.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from tests.cluster import (
    binaries,
    certs,
    images,
    kubeconfig,
    network,
    node,
    packages,
    process,
    requirements,
    sandbox,
    services,
    teardown,
)
from tests.cluster import control_plane as plane
from tests.cluster import state as states
from tests.cluster.console import step
from tests.cluster.state import CHECKOUT, DEFAULT_NAME, NODES_ALLOWED, ClusterError, State

PORTS = ("api", "etcd", "etcd-peer")


@dataclass(frozen=True)
class Cluster:
    """A running cluster. `kubeconfig` is a file for kubectl, helm and clients. Its user has all permissions."""

    state: State

    @property
    def kubeconfig(self) -> Path:
        return self.state.kubeconfig

    @property
    def context(self) -> str:
        return self.state.context

    @property
    def server(self) -> str:
        return endpoint(self.state).server

    @property
    def bin(self) -> Path:
        """The folder with kubectl and helm."""
        return self.state.bin

    @property
    def registry_address(self) -> str:
        """The address of the registry. Nodes and pods use the name `registry.local:5000`."""
        return images.registry_address(self.state)

    @property
    def env(self) -> dict[str, str]:
        """An environment with this cluster's kubectl and helm. They reach the cluster without a proxy."""
        host = self.server.removeprefix("https://").rpartition(":")[0]
        without_proxy = {
            name: ",".join(filter(None, [os.environ.get(name), host])) for name in ("NO_PROXY", "no_proxy")
        }
        return {
            **os.environ,
            **without_proxy,
            "KUBECONFIG": str(self.kubeconfig),
            "PATH": f"{self.bin}:{os.environ.get('PATH', '')}",
        }

    @property
    def processes(self) -> dict[str, bool]:
        return {name: process.running(self.state, name) for name in process.names(self.state)}

    def push(self, image: str, name: str = "") -> str:
        return images.push(self.state, image, name)

    def stop_process(self, name: str) -> None:
        process.stop(self.state, name)

    def start_process(self, name: str) -> None:
        process.restart(self.state, name)

    def down(self) -> None:
        teardown.down(self.state)


def find(name: str = DEFAULT_NAME) -> Cluster | None:
    """This checkout's cluster with that name, or None if it is not up."""
    state = states.load(name)
    return Cluster(state) if state and process.running(state, "kube-apiserver") else None


def up(name: str = DEFAULT_NAME, nodes: int = 1, control_plane_only: bool = False) -> Cluster:
    if nodes not in NODES_ALLOWED:
        raise ClusterError(f"{nodes} nodes: a local cluster has one or two nodes")
    requirements.check(control_plane_only)
    with states.lock(states.cluster_id(str(CHECKOUT), states.check_name(name))):
        began = time.monotonic()
        with step("packages") as say:
            say(
                ", ".join(
                    packages.ensure(packages.CONTROL_PLANE if control_plane_only else packages.NODE | packages.IMAGES)
                )
            )
        programs = binaries.CONTROL_PLANE if control_plane_only else binaries.CLUSTER
        binaries.ensure(programs)
        state = _state(name, nodes, control_plane_only)
        running = process.running(state, "kube-apiserver")
        _link_programs(state, programs)
        if control_plane_only:
            _control_plane(state)
        else:
            _nodes(state)
        took = f"{'was up already' if running else 'is up'} ({time.monotonic() - began:.1f} s)"
        print(f"cluster {name} {took}: kubectl --kubeconfig {os.path.relpath(state.kubeconfig)} get nodes", flush=True)
        return Cluster(state)


def _state(name: str, nodes: int, control_plane_only: bool) -> State:
    state = states.load(name)
    if state is None:
        state = State(name, states.cluster_id(str(CHECKOUT), name), str(CHECKOUT), control_plane_only)
    if state.control_plane_only != control_plane_only:
        kind = "a control plane only" if state.control_plane_only else "a whole cluster"
        raise ClusterError(f"cluster {name} is {kind}. Take it down first: python3 -m tests.cluster down --name {name}")
    state.nodes = max(state.nodes, nodes)
    if control_plane_only:
        if not process.running(state, "kube-apiserver"):
            state.ports = _free_ports()
    elif not state.subnet:
        with states.lock("subnets"):
            state.subnet = network.choose_subnet(state.id, network.taken_subnets())
            states.save(state)
    states.save(state)
    return state


def _free_ports() -> dict[str, int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in PORTS]
        return {name: listener.getsockname()[1] for name, listener in zip(PORTS, sockets, strict=True)}


def _link_programs(state: State, programs: tuple[str, ...]) -> None:
    state.bin.mkdir(parents=True, exist_ok=True)
    for program in programs:
        link, target = state.bin / program, binaries.path(program)
        if not link.is_symlink() or link.readlink() != target:
            link.unlink(missing_ok=True)
            link.symlink_to(target)


def endpoint(state: State, holder: int | None = None) -> plane.Endpoint:
    if state.control_plane_only:
        return plane.Endpoint("127.0.0.1", *(state.ports[name] for name in PORTS))
    return plane.Endpoint(network.address(state, 1), 6443, 2379, 2380, holder)


def _certificates(state: State, at: plane.Endpoint) -> None:
    names = (
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
    )
    certs.ensure_authority(state)
    certs.ensure(state, "etcd", "etcd", hosts=("127.0.0.1",))
    certs.ensure(
        state,
        "apiserver",
        "kube-apiserver",
        "system:masters",
        hosts=(at.address, "127.0.0.1", plane.SERVICE_ADDRESS, *names),
    )
    certs.ensure(state, "admin", "finetune-local", "system:masters")
    certs.ensure(state, "aggregator", plane.AGGREGATOR)
    certs.ensure(state, "controller-manager", "system:kube-controller-manager")
    kubeconfig.write(state, state.kubeconfig, "admin", at.server)


def _control_plane(state: State) -> None:
    at = endpoint(state)
    with step("certificates"):
        _certificates(state, at)
    with step("API server"):
        plane.start_etcd(state, at)
        plane.start_api_server(state, at)
        plane.wait_for_api_server(state, at)
    with step("controllers"):
        plane.start_controller_manager(state, at)
        plane.wait_for_controllers(state, at)


def _nodes(state: State) -> None:
    nodes = range(1, state.nodes + 1)
    with step("network"):
        holders = {number: sandbox.ensure(state, number) for number in nodes}
        network.ensure(state, holders)
    at = endpoint(state, holders[1])
    with step("certificates"):
        _certificates(state, at)
        certs.ensure(state, "scheduler", "system:kube-scheduler")
        certs.ensure(state, "kube-proxy", "system:kube-proxy")
        certs.ensure(state, "dns", "finetune-local:dns")
        certs.ensure(state, "storage", "finetune-local:storage")
        for number in nodes:
            certs.ensure(
                state,
                f"kubelet-{number}",
                f"system:node:{node.name(number)}",
                "system:nodes",
                hosts=(network.address(state, number), node.name(number)),
            )
    with step("API server"):
        plane.start_etcd(state, at)
        plane.start_api_server(state, at)
        images.start_registry(state, holders[1])
        for number in nodes:
            node.start_containerd(state, number, holders[number])
        plane.wait_for_api_server(state, at)
    with step("controllers"):
        plane.start_controller_manager(state, at)
        plane.start_scheduler(state, at)
        for number in nodes:
            node.start_kubelet(state, number, at, holders[number])
            node.start_kube_proxy(state, number, at, holders[number])
        plane.wait_for_controllers(state, at)
    with step("names and volumes"):
        services.apply_manifests(state)
        services.start_dns(state, at)
        services.start_storage(state, at)
        services.wait_for_dns(state)
        images.wait_for_registry(state)
    with step("nodes") as say:
        for number in nodes:
            node.wait_until_ready(state, number, at)
        say(f"{state.nodes} Ready")
