"""The local Kubernetes is real: what the tests above rely on, on a cluster of two nodes that is theirs alone.

Pods run under the restricted Pod Security standard as user 10001, like the trainer's.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests import cluster
from tests.cluster import Cluster, network, process, sandbox, teardown
from tests.cluster.images import BUSYBOX
from tests.kube import Kube, until

NAMESPACE = "inhabitants"
NODES = {"node-1": "a", "node-2": "b"}


@pytest.fixture(scope="module")
def two_nodes(shown: Callable[[], AbstractContextManager[None]]) -> Iterator[Cluster]:
    """Gone afterwards: `down` fails when it leaves anything behind."""
    with shown():
        print("\nA local Kubernetes of two nodes", flush=True)
        if left_over := cluster.find("two-nodes"):
            left_over.down()  # by a run that was broken off
        made = cluster.up("two-nodes", nodes=2)
    try:
        yield made
    finally:
        made.down()


@pytest.fixture(scope="module")
def kube(two_nodes: Cluster) -> Kube:
    kube = Kube(two_nodes.kubeconfig)
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}})
    return kube


def claim(kube: Kube, name: str, mode: str, storage_class: str | None = None) -> None:
    spec: dict[str, Any] = {"accessModes": [mode], "resources": {"requests": {"storage": "1Gi"}}}
    if storage_class:
        spec["storageClassName"] = storage_class
    kube.create(
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}, NAMESPACE
    )


def start(
    kube: Kube,
    name: str,
    script: str,
    *,
    image: str = BUSYBOX,
    node: str | None = None,
    claims: tuple[str, ...] = (),
    limits: dict[str, str] | None = None,
) -> None:
    """A restricted pod that runs a shell script, with each claim mounted at /<claim>."""
    container = {
        "name": "main",
        "image": image,
        "command": ["sh", "-ec", script],
        "resources": {"limits": limits or {}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": claim, "mountPath": f"/{claim}"} for claim in claims],
    }
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 0,
        "nodeSelector": {"kubernetes.io/hostname": node} if node else {},
        "securityContext": {"runAsNonRoot": True, "runAsUser": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim in claims],
    }
    metadata = {"name": name, "labels": {"app": name}}
    kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}, NAMESPACE)


def phase(kube: Kube, name: str) -> str:
    return str(kube.get("Pod", name, NAMESPACE)["status"]["phase"])


def ended(kube: Kube, name: str) -> dict[str, Any]:
    """How the pod's container ended, and what it printed."""
    pod = until(
        f"pod {name} ends",
        lambda: (
            pod if (pod := kube.get("Pod", name, NAMESPACE))["status"]["phase"] in ("Succeeded", "Failed") else None
        ),
        timeout=120,
    )
    log = kube.call("GET", f"api/v1/namespaces/{NAMESPACE}/pods/{name}/log")
    return {**pod["status"]["containerStatuses"][0]["state"]["terminated"], "log": log}


def ready(kube: Kube, node: str) -> str:
    conditions = kube.get("Node", node)["status"]["conditions"]
    return str(next(one["status"] for one in conditions if one["type"] == "Ready"))


def test_two_nodes_in_two_zones_with_gpus_that_are_counted(kube: Kube) -> None:
    nodes = {node["metadata"]["name"]: node for node in kube.list("Node")}
    assert {name: ready(kube, name) for name in nodes} == dict.fromkeys(NODES, "True")
    assert {name: node["metadata"]["labels"]["topology.kubernetes.io/zone"] for name, node in nodes.items()} == NODES

    start(kube, "too-many", "true", limits={"nvidia.com/gpu": "9"})
    start(kube, "just-enough", "true", limits={"nvidia.com/gpu": "8"})
    assert ended(kube, "just-enough")["exitCode"] == 0
    conditions = kube.get("Pod", "too-many", NAMESPACE)["status"]["conditions"]
    assert "Insufficient nvidia.com/gpu" in conditions[0]["message"]


def test_both_nodes_write_to_one_volume_at_the_same_time(kube: Kube) -> None:
    claim(kube, "shared", "ReadWriteMany")
    for own, other in (("node-1", "node-2"), ("node-2", "node-1")):
        wait = f"echo hello > /shared/{own}; until test -e /shared/{other}; do sleep 0.1; done; id -u"
        start(kube, f"writer-on-{own}", wait, node=own, claims=("shared",))
    for node in NODES:
        how = ended(kube, f"writer-on-{node}")
        assert (how["exitCode"], how["log"]) == (0, "10001\n")


def test_a_volume_of_one_node_binds_its_pods_to_that_node(kube: Kube) -> None:
    claim(kube, "own", "ReadWriteOnce", "standard-rwo")
    start(kube, "first", "echo kept > /own/file", node="node-2", claims=("own",))
    assert ended(kube, "first")["exitCode"] == 0
    start(kube, "second", "cat /own/file", claims=("own",))
    assert ended(kube, "second")["log"] == "kept\n"
    assert kube.get("Pod", "second", NAMESPACE)["spec"]["nodeName"] == "node-2"

    start(kube, "elsewhere", "true", node="node-1", claims=("own",))
    until(
        "the pod says why it cannot run on the other node",
        lambda: "PersistentVolume's node affinity" in json.dumps(kube.get("Pod", "elsewhere", NAMESPACE)["status"]),
    )


def test_a_service_is_reached_by_name_from_the_other_node(two_nodes: Cluster, kube: Kube) -> None:
    cluster.base_image()
    image = two_nodes.push(cluster.BASE_IMAGE)
    start(kube, "server", "cd /tmp; echo found > index.html; exec httpd -f -p 8080", node="node-2")
    for name, address in (("server", None), ("headless", "None")):
        spec = {"selector": {"app": "server"}, "ports": [{"port": 80, "targetPort": 8080}]}
        spec |= {"clusterIP": address} if address else {}
        kube.create({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}, NAMESPACE)
    until("the server runs", lambda: phase(kube, "server") == "Running", timeout=60)
    client = """
import time, urllib.request
for url in ("http://server", "http://headless:8080"):
    for attempt in range(100):
        try:
            print(urllib.request.urlopen(url, timeout=2).read().decode(), end="")
            break
        except OSError:
            time.sleep(0.2)
"""
    start(kube, "client", f"python3 -c '{client}'", image=image, node="node-1")
    assert ended(kube, "client")["log"] == "found\nfound\n"


def test_a_pod_that_outgrows_its_memory_is_killed_for_it(kube: Kube) -> None:
    start(kube, "greedy", "tail /dev/zero", limits={"memory": "32Mi"})
    how = ended(kube, "greedy")
    assert (how["reason"], how["exitCode"]) == ("OOMKilled", 137)


def test_a_lost_node_is_noticed_and_comes_back_with_its_pods(two_nodes: Cluster, kube: Kube) -> None:
    start(kube, "survivor", "sleep 600", node="node-2", limits={"nvidia.com/gpu": "1"})
    until("the pod runs", lambda: phase(kube, "survivor") == "Running", timeout=60)
    two_nodes.stop_process("kubelet-2")
    until("the node is not ready", lambda: ready(kube, "node-2") != "True", timeout=60)
    two_nodes.start_process("kubelet-2")
    until("the node is ready again", lambda: ready(kube, "node-2") == "True", timeout=60)
    status = kube.get("Pod", "survivor", NAMESPACE)["status"]
    assert status["phase"] == "Running"
    assert status["containerStatuses"][0]["restartCount"] == 0
    assert kube.get("Node", "node-2")["status"]["allocatable"]["nvidia.com/gpu"] == "8"


def test_up_again_changes_nothing_and_mends_what_is_broken(two_nodes: Cluster, kube: Kube) -> None:
    def ids() -> dict[str, int]:
        records = {name: process.read(two_nodes.state, name) for name in two_nodes.processes}
        return {name: record["pid"] for name, record in records.items() if record}

    before = ids()
    cluster.up("two-nodes")
    assert ids() == before

    for broken in ("kube-apiserver", "kubelet-2", "coredns"):
        two_nodes.stop_process(broken)
    cluster.up("two-nodes")
    assert all(two_nodes.processes.values())
    assert {name for name, pid in ids().items() if pid != before[name]} == {"kube-apiserver", "kubelet-2", "coredns"}
    assert ready(kube, "node-2") == "True"


def test_what_is_left_of_a_cluster_would_be_named(two_nodes: Cluster) -> None:
    holder = process.read(two_nodes.state, "node-2")
    assert holder is not None
    left = teardown.leftovers(two_nodes.state, sandbox.namespaces(holder["pid"]))
    assert "process node-2" in left
    assert f"link {network.link(two_nodes.state)}" in left
    assert any(one.startswith("cgroup ") for one in left)
    assert any(one.endswith("in a node's namespaces") for one in left)


def test_only_a_cluster_of_ours_is_taken_for_one(two_nodes: Cluster, tmp_path: Path) -> None:
    assert cluster.is_ours(two_nodes.kubeconfig)
    stranger = json.loads(two_nodes.kubeconfig.read_text())
    stranger["clusters"][0]["cluster"]["certificate-authority-data"] = base64.b64encode(b"another").decode()
    (tmp_path / "kubeconfig").write_text(json.dumps(stranger))
    assert not cluster.is_ours(tmp_path / "kubeconfig")
    assert not cluster.is_ours(two_nodes.kubeconfig, context="production")
