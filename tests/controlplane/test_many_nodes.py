"""What hurts jobs on several nodes: silent nodes, jobs that hold each other's nodes, bad hardware, slow ranks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.controlplane import operator_process
from tests.controlplane.operator_process import OperatorProcess
from tests.controlplane.scene import Scene, result
from tests.kube import Kube, Object, until

pytestmark = pytest.mark.usefixtures("operator")

NODES: dict[str, Any] = {"resources": {"nodes": 2}, "backoffLimit": 0}
NO_FIT = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."


@pytest.fixture(scope="module")
def shared_operator(
    kube: Kube, deployed: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OperatorProcess]:
    """An operator that waits for less long than users would have it wait."""
    home = tmp_path_factory.mktemp("operator")
    config = operator_process.kubeconfig(kube, home / "kubeconfig")
    settings = {"lost_node_timeout": 1, "partly_scheduled_timeout": 1}
    process = OperatorProcess(config, deployed, home / "log", **settings)
    process.start()
    yield process
    assert process.stop() == 0


def pods(scene: Scene, name: str = "job", attempt: int = 1) -> list[Object]:
    """Both pods of an attempt at training, which preparing comes before."""
    scene.prepared(name)
    return until(
        f"attempt {attempt} of {name} has two pods",
        lambda: found if len(found := scene.kubelet.pods(name, attempt)) == 2 else None,
    )


def running(scene: Scene, name: str = "job", attempt: int = 1) -> list[Object]:
    both = pods(scene, name, attempt)
    for pod in both:
        scene.kubelet.run(pod)
    scene.reaches("Running", name=name, attempt=attempt)
    return both


def avoided(scene: Scene, attempt: int) -> Object:
    """What the Job of an attempt requires of nodes."""
    spec: Object = scene.batches()[attempt - 1]["spec"]["template"]["spec"]
    affinity: Object = spec.get("affinity", {})
    return affinity


def test_a_pod_on_a_silent_node_is_given_up_and_stays_as_it_is(scene: Scene) -> None:
    """The next attempt runs beside what may be left of it, away from that node."""
    scene.submit(**NODES)
    first, lost = running(scene)
    scene.kubelet.lose_node(lost, grace=1)
    assert "does not answer" in scene.reaches("Starting", "NodeLost")["message"]
    scene.asked_to_end(first)
    scene.kubelet.finish(first, 75, json.dumps(result(75, "saved at step 40")))
    scene.kubelet.remove(first)
    running(scene, attempt=2)
    status = scene.status()
    [ended, _] = status["attempts"]
    assert (ended["state"], ended["reason"], ended["failures"]) == ("Ended", "NodeLost", 0)
    assert (ended["suspect"], status["attempts"][1]["avoids"]) == ("node-1", ["node-1"])
    assert lost["metadata"]["name"] in ended["message"]
    terms = avoided(scene, 2)["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert terms == [{"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["node-1"]}]}]
    [left] = scene.kubelet.pods("job", 1)
    assert left["metadata"]["uid"] == lost["metadata"]["uid"], "never deleted by force"


def test_two_jobs_that_hold_each_others_nodes_take_turns(scene: Scene) -> None:
    both = ("older", "younger")
    for name in both:
        scene.submit(name, **NODES)
        scene.prepared(name)
    held = {name: pods(scene, name) for name in both}
    for name in both:
        placed, other = held[name]
        scene.kubelet.find_no_node(other, NO_FIT)
        scene.kubelet.hold(placed, "ContainerCreating", "")
        if name == "older":
            scene.reaches("Starting", "PartlyScheduled", name=name)
    scene.asked_to_end(held["younger"][0])  # the pod without a node is gone at once
    assert scene.status("older")["reason"] == "PartlyScheduled", "it keeps its nodes"
    scene.kubelet.remove_all("younger")
    for pod in held["older"]:
        scene.kubelet.run(pod)
    scene.reaches("Running", name="older")
    running(scene, "younger", attempt=2)
    [ended, _] = scene.status("younger")["attempts"]
    assert (ended["reason"], ended["failures"]) == ("PartlyScheduled", 0)
    assert "Job older, which is older, also holds some nodes" in ended["message"]


def test_hardware_that_a_trainer_reports_is_avoided(scene: Scene) -> None:
    scene.submit(**{**NODES, "backoffLimit": 1})
    first, second = running(scene)
    told = {**result(70, "uncorrectable ECC error", reason="HardwareError"), "faultyNode": 1}
    scene.kubelet.finish(second, 70, json.dumps(told))
    scene.asked_to_end(first)
    scene.kubelet.finish(first, 70, json.dumps(result(70, "Rank 1 (node 1): uncorrectable ECC error")))
    running(scene, attempt=2)
    [ended, begun] = scene.status()["attempts"]
    assert (ended["reason"], ended["suspect"], begun["avoids"]) == ("HardwareError", "node-1", ["node-1"])


def test_a_straggling_rank_is_told_with_its_node_until_it_recovers(scene: Scene) -> None:
    scene.submit(**NODES)
    first, second = running(scene)
    progress = {
        "attempt": 1,
        "kind": "train",
        "step": 62,
        "totalSteps": 80,
        "percent": 77,
        "summary": "62/80 (77%)",
        "lastUpdateTime": "2026-01-31T12:00:00Z",
    }
    slow = {"rank": 1, "nodeRank": 1, "ratio": "1.31", "sinceStep": 40, "stragglers": 1}
    scene.report(first, {"progress": {**progress, "slowestRank": slow}})
    message = scene.reaches("Running", "Straggler")["message"]
    assert f"Rank 1 (node node-1, pod {second['metadata']['name']})" in message
    scene.report(first, {"progress": {**progress, "slowestRank": {"rank": 1, "nodeRank": 1, "ratio": "1.04"}}})
    until("it has recovered", lambda: scene.status()["reason"] != "Straggler")
    until("an event tells it", lambda: "Straggler" in [reason for _type, reason in scene.told()])
