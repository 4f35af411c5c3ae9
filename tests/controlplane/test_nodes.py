"""Jobs on several nodes: their pods find each other, start together, and are judged as one.

The real Job controller deletes what is left of an attempt when one pod has failed: what those pods say then must not be
taken for the cause.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.controlplane.scene import FTJ, Scene, result
from tests.kube import Object, until

pytestmark = pytest.mark.usefixtures("operator")

NODES: dict[str, Any] = {"resources": {"nodes": 2}}
NO_FIT = "0/2 nodes are available: 2 Insufficient nvidia.com/gpu."


def pods(scene: Scene, attempt: int = 1) -> list[Object]:
    """Both pods of an attempt at training, which preparing comes before."""
    scene.prepared()
    return until(
        f"attempt {attempt} has two pods",
        lambda: found if len(found := scene.kubelet.pods("job", attempt)) == 2 else None,
    )


def running(scene: Scene, attempt: int = 1) -> list[Object]:
    both = pods(scene, attempt)
    for pod in both:
        scene.kubelet.run(pod)
    scene.reaches("Running", attempt=attempt)
    return both


def hosts(scene: Scene) -> dict[str, str]:
    """Host names below the Service's, as the cluster's DNS has them: name -> address."""
    path = f"apis/discovery.k8s.io/v1/namespaces/{scene.namespace}/endpointslices"
    ends = [end for item in scene.kube.call("GET", path)["items"] for end in item["endpoints"] or []]
    return {end["hostname"]: end["addresses"][0] for end in ends if "hostname" in end}


def test_the_first_pod_is_found_by_job_and_index_before_it_is_ready(scene: Scene) -> None:
    scene.submit(**NODES)
    for number, pod in enumerate(pods(scene)):
        name = pod["metadata"]["labels"]["batch.kubernetes.io/job-name"]
        assert (pod["spec"]["hostname"], pod["spec"]["subdomain"]) == (f"{name}-{number}", name)
        address = f"10.9.8.{number}"
        scene.kubelet.hold(pod, "ContainerCreating", "")
        status = {"podIP": address, "podIPs": [{"ip": address}]}
        scene.kube.patch("Pod", pod["metadata"]["name"], {"status": status}, scene.namespace, part="status")
    until("both are known", lambda: hosts(scene) == {f"{name}-0": "10.9.8.0", f"{name}-1": "10.9.8.1"})
    [service] = scene.kube.list("Service", scene.namespace)
    assert (service["metadata"]["name"], service["spec"]["clusterIP"]) == (name, "None")


def test_it_runs_when_both_do_and_says_who_has_no_node(scene: Scene) -> None:
    scene.submit(**NODES)
    first, second = pods(scene)
    scene.kubelet.run(first)
    scene.kubelet.find_no_node(second, NO_FIT)
    message = scene.reaches("Starting", "PartlyScheduled")["message"]
    assert message.startswith(f"1 of 2 pods have a node and hold it; node rank 1 has no node: {NO_FIT}")
    scene.kubelet.run(second)
    scene.reaches("Running")
    scene.kubelet.finish(first, 0, json.dumps(result(0)))
    scene.kubelet.finish(second, 0)
    assert scene.reaches("Succeeded")["artifact"]


def test_a_node_that_is_drained_takes_the_attempt_along_uncounted(scene: Scene) -> None:
    """Its pod is gone at once, and all that is left is what the other one says of that."""
    scene.submit(backoffLimit=0, **NODES)
    first, second = running(scene)
    scene.report(
        first,
        {
            "checkpoint": {
                "attempt": 1,
                "step": 40,
                "path": "jobs/job/checkpoints/1-x/40",
                "time": "2026-01-31T12:00:00Z",
            }
        },
    )
    scene.kubelet.drain(second)
    until("the drain is noted", lambda: scene.status()["attempts"][0].get("cause") == "Disrupted")
    scene.kubelet.finish(first, 70, json.dumps(result(70, "rank 1 does not answer")))
    scene.kubelet.finish(second, 143)
    scene.kubelet.remove(second)
    running(scene, attempt=2)
    status = scene.status()
    [lost, _] = status["attempts"]
    assert (lost["reason"], lost["failures"]) == ("Disrupted", 0)
    assert second["metadata"]["name"] in lost["message"]
    assert status["message"] == "Training: attempt 2.", "it has not reported yet"


def test_pods_that_end_because_another_failed_were_not_drained(scene: Scene) -> None:
    """They are asked to end, and save."""
    scene.submit(backoffLimit=1, **NODES)
    first, second = running(scene)
    scene.kubelet.finish(second, 70, json.dumps(result(70, "a bug")))
    scene.asked_to_end(first)
    scene.kubelet.finish(first, 75, json.dumps(result(75, "saved at step 40")))
    running(scene, attempt=2)
    [failed, _] = scene.status()["attempts"]
    assert (failed["reason"], failed["failures"], failed["message"]) == ("InternalError", 1, "a bug")


def test_whoever_was_killed_for_memory_is_named_not_who_lost_touch(scene: Scene) -> None:
    scene.submit(backoffLimit=0, **NODES)
    first, second = running(scene)
    scene.kubelet.finish(second, 137, reason="OOMKilled")
    scene.kubelet.finish(first, 70, json.dumps(result(70, "rank 1 does not answer")))
    status = scene.reaches("Failed", "BackoffLimitExceeded")
    assert status["attempts"][0]["reason"] == "OutOfMemory"
    assert f"Node rank 1 (pod {second['metadata']['name']}) used more host memory" in status["message"]


def test_deleted_it_leaves_nothing(scene: Scene) -> None:
    scene.submit(**NODES)
    both = running(scene)
    scene.kube.delete(FTJ, "job", scene.namespace)
    for pod in both:
        scene.asked_to_end(pod)
    scene.kubelet.remove_all("job")
    kinds = ("Job", "Pod", "Service")
    assert until("all is gone", lambda: not any(scene.kube.list(kind, scene.namespace) for kind in kinds))
