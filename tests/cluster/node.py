"""A node: containerd, kubelet and kube-proxy inside its sandbox.

Called by cluster.py. All configuration is written as JSON, which the components read as YAML. A node reports eight GPUs
that it does not have, so that scheduling by `nvidia.com/gpu` is real. Containers see no device.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

from tests.cluster import api, images, network, packages, process, sandbox
from tests.cluster.control_plane import POD_SUBNET, Endpoint
from tests.cluster.kubeconfig import write
from tests.cluster.state import State, replace

ZONES = {1: "a", 2: "b"}
GPUS = "8"
SOCKET = "/run/containerd/containerd.sock"
MERGE = "application/merge-patch+json"


def name(node: int) -> str:
    return f"node-{node}"


def start_containerd(state: State, node: int, holder: int) -> None:
    directory, config = state.node_directory(node), state.config / f"containerd-{node}.toml"
    registry = f"http://{images.registry_address(state)}"
    cni = {
        "cniVersion": "0.4.0",
        "name": "pods",
        # Traffic between pods is routed by the node, so answers of a Service pass the node's address rewriting too.
        "plugins": [
            {
                "type": "ptp",
                "ipMasq": False,
                "ipam": {"type": "host-local", "subnet": network.pod_subnet(node), "routes": [{"dst": "0.0.0.0/0"}]},
            }
        ],
    }
    replace(directory / "cni" / "10-pods.conflist", json.dumps(cni, indent=2))
    # The public name maps to a folder of the registry per cluster: clusters share its storage, but not its tags.
    replace(
        directory / "registries" / images.REGISTRY / "hosts.toml",
        f"""server = "{registry}"
[host."{registry}/v2/{state.id}"]
  capabilities = ["pull", "resolve"]
  override_path = true
""",
    )
    replace(
        config,
        f"""version = 2
root = "{directory / "containerd"}"
state = "/run/containerd"
[grpc]
  address = "{SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{directory / "opt"}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{images.BUSYBOX}"
  restrict_oom_score_adj = true
  disable_apparmor = true
  disable_hugetlb_controller = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    discard_unpacked_layers = true
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{packages.CNI_PLUGINS}"
    conf_dir = "{directory / "cni"}"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{directory / "registries"}"
""",
    )
    argv = [packages.find("containerd") or "containerd", "--config", str(config)]
    new = not sandbox.run(holder, ["ls", "-A", "/run/containerd"], check=False)
    if process.ensure(state, f"containerd-{node}", argv, holder=holder, files=[config]):
        _wait_for_containerd(state, node, holder)
        # A stopped node leaves containers without processes. Only its images are useful, so containerd must forget the
        # containers.
        if new and (stale := ctr(holder, "containers", "list", "--quiet").split()):
            ctr(holder, "containers", "delete", *stale)
            process.stop(state, f"containerd-{node}")
            process.restart(state, f"containerd-{node}")
            _wait_for_containerd(state, node, holder)
    if images.BUSYBOX not in ctr(holder, "images", "list", "--quiet").split():
        ctr(holder, "images", "import", str(images.busybox_archive()))


def _wait_for_containerd(state: State, node: int, holder: int) -> None:
    def listens() -> bool:
        return bool(sandbox.run(holder, [packages.find("ctr") or "ctr", "--address", SOCKET, "version"], check=False))

    process.wait_until(state, f"containerd of node {node} answers", listens, needs=[f"containerd-{node}"])


def ctr(holder: int, *arguments: str) -> str:
    return sandbox.run(
        holder, [packages.find("ctr") or "ctr", "--address", SOCKET, "--namespace", "k8s.io", *arguments]
    )


def start_kubelet(state: State, node: int, at: Endpoint, holder: int) -> None:
    identity = f"kubelet-{node}"
    kubeconfig = write(state, state.config / identity, identity, at.server)
    config = _write(state.config / f"{identity}.json", kubelet_configuration(state, node))
    # Without this file, the kubelet treats the machine as new and sets the resources that it does not know to 0.
    marker = state.node_directory(node) / "kubelet" / "device-plugins" / "kubelet_internal_checkpoint"
    if not marker.exists():
        replace(marker, "{}")
    argv = [
        state.program("kubelet"),
        f"--config={config}",
        f"--kubeconfig={kubeconfig}",
        f"--hostname-override={name(node)}",
        f"--node-ip={network.address(state, node)}",
        f"--node-labels=topology.kubernetes.io/zone={ZONES[node]},topology.kubernetes.io/region=local",
    ]
    process.ensure(state, identity, argv, holder=holder, files=[config, kubeconfig])


def kubelet_configuration(state: State, node: int) -> dict[str, Any]:
    pki = state.pki
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(pki / f"kubelet-{node}.crt"),
        "tlsPrivateKeyFile": str(pki / f"kubelet-{node}.key"),
        "containerRuntimeEndpoint": f"unix://{SOCKET}",
        "volumePluginDir": str(state.node_directory(node) / "volume-plugins"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{sandbox.cgroup_name(state, node)}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "oomScoreAdj": 0,
        "clusterDomain": "cluster.local",
        "clusterDNS": [network.address(state, 1)],
        "resolvConf": "",
        "serializeImagePulls": False,
        "nodeStatusUpdateFrequency": "4s",
        "nodeLeaseDurationSeconds": 16,
        # The disk is the machine's, and may well be nearly full: neither images nor pods are thrown out for that.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": {
            "memory.available": "0%",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
        },
    }


def start_kube_proxy(state: State, node: int, at: Endpoint, holder: int) -> None:
    kubeconfig = write(state, state.config / "kube-proxy", "kube-proxy", at.server)
    own = network.address(state, node)
    configuration = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clientConnection": {"kubeconfig": str(kubeconfig)},
        "clusterCIDR": POD_SUBNET,
        "hostnameOverride": name(node),
        "healthzBindAddress": f"{own}:10256",
        "nodePortAddresses": ["primary"],
        "oomScoreAdj": 0,
        # Unset, because these are settings of the whole machine, not of the network namespace.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }
    config = _write(state.config / f"kube-proxy-{node}.json", configuration)
    argv = [state.program("kube-proxy"), f"--config={config}"]
    process.ensure(state, f"kube-proxy-{node}", argv, holder=holder, files=[config, kubeconfig])


def wait_until_ready(state: State, node: int, at: Endpoint) -> None:
    """Wait until the current kubelet reports Ready, the GPUs are counted and Services are reachable."""
    record = process.read(state, f"kubelet-{node}")
    assert record is not None
    path = f"/api/v1/nodes/{name(node)}"

    def ready() -> bool:
        code, answer = api.call(state, at.server, "GET", path)
        conditions = answer["status"].get("conditions", []) if code == 200 else []
        return any(
            c["type"] == "Ready" and c["status"] == "True" and _time(c["lastHeartbeatTime"]) >= int(record["at"])
            for c in conditions
        )

    needs = [f"kubelet-{node}", f"containerd-{node}"]
    process.wait_until(state, f"{name(node)} is Ready", ready, needs=needs, timeout=90)
    process.wait_until(
        state,
        f"kube-proxy of {name(node)} is healthy",
        lambda: api.answers(network.address(state, node), 10256, "/healthz"),
        needs=[f"kube-proxy-{node}"],
    )
    give_gpus(state, node, at)


def give_gpus(state: State, node: int, at: Endpoint) -> None:
    gpus = {"nvidia.com/gpu": GPUS}
    path = f"/api/v1/nodes/{name(node)}/status"

    def counted() -> bool:
        code, answer = api.call(state, at.server, "GET", path)
        if code == 200 and all(
            answer["status"][kind].get("nvidia.com/gpu") == GPUS for kind in ("capacity", "allocatable")
        ):
            return True
        api.call(state, at.server, "PATCH", path, {"status": {"capacity": gpus, "allocatable": gpus}}, MERGE)
        return False

    process.wait_until(state, f"{name(node)} counts {GPUS} GPUs", counted, needs=[f"kubelet-{node}"])


def _time(text: str) -> float:
    return datetime.datetime.fromisoformat(text).timestamp()


def _write(path: Path, content: dict[str, Any]) -> Path:
    text = json.dumps(content, indent=2)
    if not path.exists() or path.read_text() != text:
        replace(path, text)
    return path
