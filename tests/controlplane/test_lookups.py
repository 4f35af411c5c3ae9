"""What the operator looks up before it makes an attempt: the workspace's access modes, the nodes' labels."""

from __future__ import annotations

import json
from typing import Any

from tests import chart
from tests.controlplane.lane import Lane
from tests.controlplane.scene import Scene, claim
from tests.kube import ApiError, Kube, until

NODES: dict[str, Any] = {"resources": {"nodes": 2}}


def test_a_workspace_that_two_nodes_cannot_mount_is_waited_for(scene: Scene, own: Lane) -> None:
    """With what to do. Once it is created again, the job continues by itself."""
    scene.kube.create(claim(), scene.namespace)
    own.operator.start(resync_seconds=1)
    scene.submit(**NODES)
    status = scene.reaches("Pending", "WorkspaceNotShareable")
    assert "only the pods of one node can mount claim workspace (ReadWriteOnce)" in status["message"]
    [accepted] = [c for c in status["conditions"] if c["type"] == "Accepted"]
    assert (accepted["status"], accepted["reason"]) == ("False", "WorkspaceNotShareable")
    own.proxy.wait_for_listings(2)
    assert [str(call) for call in own.proxy.counted(scene.namespace)] == ["PATCH finetunejobs/status job"]
    scene.kube.delete("PersistentVolumeClaim", "workspace", scene.namespace)
    until("the claim is gone", lambda: not scene.kube.find("PersistentVolumeClaim", "workspace", scene.namespace))
    scene.kube.create(claim(mode="ReadWriteMany"), scene.namespace)
    scene.preparing()


def gpu_memory(scene: Scene, name: str) -> int | None:
    """The resolved job of the prepare pod."""
    notes = scene.kubelet.pod(name, kind="prepare")["metadata"]["annotations"]
    told: int | None = json.loads(notes["finetune-operator.io/resolved-job"])["runtime"].get("gpuMemoryBytes")
    return told


def test_nodes_say_how_much_memory_a_gpu_has_where_they_may_be_asked(scene: Scene, own: Lane) -> None:
    """The least of those that the nodeSelector leaves. Without the right, as the chart is by default, nobody does."""
    pool = {"pool": scene.namespace}
    for name, memory in (("small", 15360), ("large", 81559)):
        labels = {**pool, "nvidia.com/gpu.memory": str(memory)}
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": f"{scene.namespace}-{name}", "labels": labels}}
        scene.kube.create(node)
    own.operator.start(read_node_labels=True)
    scene.submit("without", resources={"nodeSelector": pool})
    assert gpu_memory(scene, "without") is None
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": scene.namespace}}
    rules = [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}]
    scene.kube.create({**role, "kind": "ClusterRole", "rules": rules})
    account = {"kind": "ServiceAccount", "name": chart.RELEASE, "namespace": chart.NAMESPACE}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": scene.namespace}
    scene.kube.create({**role, "kind": "ClusterRoleBinding", "roleRef": reference, "subjects": [account]})
    try:
        operator = scene.kube.as_account(chart.RELEASE, chart.NAMESPACE)
        until("the operator may list nodes", lambda: may_list_nodes(operator))
        scene.submit("with", resources={"nodeSelector": pool})
        assert gpu_memory(scene, "with") == 15360 * 2**20
        scene.submit("said", resources={"nodeSelector": pool, "gpuMemory": "80Gi"})
        assert gpu_memory(scene, "said") == 80 * 2**30
    finally:
        for kind in ("ClusterRoleBinding", "ClusterRole"):
            scene.kube.delete(kind, scene.namespace)
        for name in ("small", "large"):
            scene.kube.delete("Node", f"{scene.namespace}-{name}")


def may_list_nodes(operator: Kube) -> bool:
    try:
        operator.list("Node")
    except ApiError:
        return False
    return True
